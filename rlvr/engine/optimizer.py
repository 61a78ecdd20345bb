"""An optimiser step that survives: AdamW on float32 masters, gradient clipping, and no step if a number is not finite."""

import math

import torch

from rlvr.config import TrainConfig, as_sentence


def make_adamw(config: TrainConfig, parameters: list[torch.nn.Parameter]) -> torch.optim.Optimizer:
    """AdamW, its two moments in float32 or in 8 bits (Dettmers et al. 2022). Raises SettingError if bitsandbytes is missing or fails."""
    settings = dict(lr=config.lr, weight_decay=config.weight_decay)
    if config.optimizer == "adamw":
        fused = parameters[0].device.type == "cuda"  # one kernel, where the usual way makes copies as large as the weights
        return torch.optim.AdamW(parameters, **settings, fused=fused or None)
    # It may not be installed, or its library may not fit this machine.
    with as_sentence("--optimizer adamw8bit needs the package bitsandbytes", "Install it: pip install bitsandbytes"):
        from bitsandbytes.optim import AdamW8bit
    return AdamW8bit(parameters, **settings)


class MasterWeights:
    """float32 master copies for a model that computes in bfloat16.

    AdamW at a learning rate of 1e-6 moves a weight by less than bfloat16 can show, so a pure bfloat16 run does not learn. Here the
    optimiser works on float32 copies: after each backward pass the gradients are added to theirs and freed, and after each update the
    copies are rounded back into the model. For a float32 model the masters are the weights themselves and nothing is copied.
    """

    def __init__(self, model):
        trained = [p for p in model.parameters() if p.requires_grad]
        self.parameters = [p if p.dtype == torch.float32 else torch.nn.Parameter(p.detach().float()) for p in trained]
        self.pairs = [(p, master) for p, master in zip(trained, self.parameters) if p is not master]

    def collect_grads(self) -> None:
        """Add the model's gradients to the masters', in float32, and free them. Call after every backward pass."""
        for p, master in self.pairs:
            if p.grad is not None:
                grad = p.grad.float()
                master.grad = grad if master.grad is None else master.grad.add_(grad)
                p.grad = None

    def zero_grad(self) -> None:
        """Free all gradients, of the model and of the masters."""
        for p in (*self.parameters, *(p for p, _ in self.pairs)):
            p.grad = None

    @torch.no_grad()
    def write_back(self) -> None:
        """Round the masters into the model. Call after every optimiser step."""
        for p, master in self.pairs:
            p.copy_(master)


class Optimizer:
    """Master weights and AdamW, with all that can go wrong in a step."""

    def __init__(self, config: TrainConfig, model):
        self.config, self.weights = config, MasterWeights(model)
        self.adamw = make_adamw(config, self.weights.parameters)
        self.skipped_in_a_row = 0
        self.between_updates = True  # False while the weights change: what an error leaves then must not be saved

    def learning_rate(self, number: int) -> float:
        """Of step `number`: linear warm-up, then constant, or linear to a tenth at the last step. The same for all updates of a step."""
        c, past = self.config, number - self.config.warmup_steps
        if past <= 0:
            return c.lr * number / (c.warmup_steps + 1)
        return c.lr if c.lr_schedule == "constant" else c.lr * (1 - 0.9 * (past / max(c.steps - c.warmup_steps, 1)))

    def step(self, loss: float, number: int) -> dict:
        """Clip the gradients, make an update in step `number`, and free them. If loss or gradient is not finite, nothing changes.

        Returns grad_norm (before clipping), and skipped: whether no update was made.
        """
        norm = torch.nn.utils.clip_grad_norm_(self.weights.parameters, self.config.max_grad_norm).item()
        finite = math.isfinite(norm) and math.isfinite(loss)
        if finite:
            for group in self.adamw.param_groups:
                group["lr"] = self.learning_rate(number)
            self.between_updates = False
            self.adamw.step()
            self.weights.write_back()
            self.between_updates = True
        self.weights.zero_grad()
        self.skipped_in_a_row = 0 if finite else self.skipped_in_a_row + 1
        return {"grad_norm": norm, "skipped": not finite}
