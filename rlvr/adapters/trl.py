"""The methods inside TRL's GRPOTrainer, which brings Accelerate, DeepSpeed, FSDP and vLLM.

One method of TRL is overridden to replace the advantages of the rows by those of the tokens: TRL's maintainers name this as the supported
way (huggingface/trl#4525). The rows of a group may lie on several processes, so everything is gathered before it is shaped.
"""

import inspect
from functools import wraps

from rlvr.adapters import need, need_method

need("trl", ">=1.16,<2")

import torch
from transformers import TrainerCallback
from transformers.trainer_callback import ExportableState
from trl import GRPOTrainer

from rlvr.adapters.shaping import settings, shaped_by
from rlvr.config import SettingError, refuse
from rlvr.entropy import log_perplexity, plateau_step
from rlvr.loaders.rows import cell_text, gold_answer
from rlvr.methods import reads
from rlvr.reward import rewards_from

_USED = {  # the private methods of TRL that are overridden or called, and the parameters that this needs
    "_generate_and_score_completions": "inputs",
    "_calculate_rewards": "inputs prompts completions completion_ids_list",
    "_get_per_token_logps_and_entropies": "model input_ids attention_mask logits_to_keep batch_size compute_entropy",
    "_compute_loss": "model inputs",
}
for _name, _parameters in _USED.items():
    need_method(GRPOTrainer, _name, _parameters, "trl==1.16.0")


def right_or_wrong(completions: list, answer: list | None = None, **_) -> list[float | None]:
    """A reward function for TRL: 1 for a right answer, -1 for a wrong one, None where it could not be checked or there is no gold answer.

    answer: the column of that name in the dataset, with answers or with solutions that end in one, as in GSM8K. A completion is a text, or
    a list of messages of which the last is read. Raises SettingError for a dataset without that column.
    """
    refuse(answer is None, "The dataset has no column 'answer' with the gold answers. Name yours so: data.rename_column(yours, 'answer').")
    texts = [c if isinstance(c, str) else c[-1]["content"] for c in completions]
    golds = [gold_answer(cell_text(gold, "The answer of a row")) for gold in answer]
    return [None if reward != reward or not gold else reward for reward, gold in zip(rewards_from(None, texts, golds), golds)]


class Stage(TrainerCallback, ExportableState):
    """The mean entropy of each step, for the stage detector. A checkpoint keeps it, and a resumed run goes on with it."""

    def __init__(self, entropies: list[float] = ()):
        self.entropies = list(entropies)

    @property
    def plateau(self) -> int | None:
        """The step at which the plateau began."""
        return plateau_step(self.entropies)

    def state(self) -> dict:
        return {"args": {"entropies": self.entropies}, "attributes": {}}

    def on_train_begin(self, args, state, control, **_):
        stored = state.stateful_callbacks.get("Stage", self.state())["args"]["entropies"]
        self.entropies = list(stored) if state.global_step else []  # a run from step 0 has none, also after another of the same trainer


class ShapedGRPOTrainer(GRPOTrainer):
    """GRPOTrainer, with the advantages of the tokens made by a method of `rlvr.advantage`.

    method, learn_from, shape_start and shape_stop mean what they mean in `python train.py --help`; strengths are those of the method, as in
    strengths={"ppl_alpha": 0.2}; everything else is TRL's. A step is one optimiser step of TRL (its global_step); completions that serve
    several steps keep the method of the step that sampled them. 'plateau' takes effect one step later than in train.py: TRL knows the
    entropy of a step only after its update. In the log an answer is right if its summed reward is above 0: give wrong ones 0 or less.

    Where nothing is shaped (method grpo, strength 0, outside the window) TRL's advantages stay as they are, so the run is TRL's own, bit
    for bit. They differ from ours by TRL's 1e-4 beside the standard deviation. Raises SettingError, also for a method that reads rewards
    (dr-grpo takes the division by their standard deviation back) where TRL does not make it, or counts rows in it that it masks.
    """

    def __init__(self, *args, method="ppl+pos", learn_from="all", shape_start=1, shape_stop=0, strengths=None, **kwargs):
        self.shaping = settings(method=method, learn_from=learn_from, shape_start=shape_start, shape_stop=shape_stop, **strengths or {})
        super().__init__(*args, **kwargs)
        usual = dict(scale_rewards="group", multi_objective_aggregation="sum_then_normalize", mask_truncated_completions=False)
        other = " and ".join(f"{name}={getattr(self, name)!r}" for name, value in usual.items() if getattr(self, name) != value)
        if other and "rewards" in reads(method):  # rows that it masks count in TRL's
            raise SettingError(f"{method} counts on a division by the group's standard deviation, which {other} changes. Leave that out.")
        self.add_callback(Stage())
        self._sums = 0.0  # over the micro-batches of a step, see _compute_loss

    @property
    def stage(self) -> Stage:
        """That of the run; transformers may put another in its place when it resumes."""
        return next(callback for callback in self.callback_handler.callbacks if isinstance(callback, Stage))

    def method_now(self) -> str:
        """That of the step to come."""
        return self.shaping.method_at(self.state.global_step + 1, self.stage.plateau)

    def _calculate_rewards(self, *args, **kwargs):
        per_function = super()._calculate_rewards(*args, **kwargs)  # [N of all processes, functions]; NaN: a function did not score
        rewards = (per_function * self.reward_weights.to(per_function.device)).nansum(1)
        self._rewards = rewards.where(~per_function.isnan().all(1), torch.nan)
        return per_function

    def _generate_and_score_completions(self, inputs):
        out = super()._generate_and_score_completions(inputs)
        if not self.model.training:
            return out
        mask = _loss_mask(out)
        first = self.accelerator.process_index * len(mask)
        ours = slice(first, first + len(mask))  # rows lie in the order of the processes
        out["summed_reward"] = self._rewards[ours]  # TRL shuffles and splits it with the rest
        self._method = self.method_now()
        logp, entropy = self._scores(out, mask)
        # Each process pads to its own longest completion.
        padded = self.accelerator.pad_across_processes(torch.stack([mask.float(), logp, entropy], 1), dim=2)  # [B, 3, T]
        mask, logp, entropy = self.accelerator.gather(padded.contiguous()).unbind(1)
        advantages = self.accelerator.gather(out["advantages"])
        group = torch.arange(len(advantages), device=advantages.device) // self.num_generations
        more = dict(rewards=self._rewards, entropy=entropy, step=self.state.global_step + 1)
        shaped = shaped_by(self.shaping, self._method, advantages, logp, mask.bool(), group, **more)
        if not shaped.equal(advantages[:, None] * mask):
            out["advantages"] = shaped[ours, : out["completion_mask"].shape[1]]
        return out

    def _scores(self, out: dict, mask):
        """Log-probs and entropies [B, T] of the policy that sampled, or zeros for what the method does not read."""
        wanted = reads(self._method)
        logp, entropy = out.get("old_per_token_logps"), torch.zeros(mask.shape, device=mask.device)
        if "entropy" in wanted or ("old_logp" in wanted and logp is None):
            ids = torch.cat([out["prompt_ids"], out["completion_ids"]], 1)
            attention = torch.cat([out["prompt_mask"], out["completion_mask"]], 1)
            score = self._get_per_token_logps_and_entropies
            images = {name: value for name, value in out.items() if name in inspect.signature(score).parameters}
            chunk = dict(batch_size=self.args.per_device_train_batch_size, compute_entropy=True)
            with torch.no_grad():
                logp, entropy, _ = score(self.model, ids, attention, mask.shape[1], **chunk, **images)
        return (torch.zeros_like(entropy) if logp is None else logp).float(), entropy.float()  # a model in bfloat16 may give such ones

    @wraps(GRPOTrainer._get_per_token_logps_and_entropies)
    def _get_per_token_logps_and_entropies(self, *args, **kwargs):
        self._seen = super()._get_per_token_logps_and_entropies(*args, **kwargs)  # of a micro-batch: log-probs, entropies
        return self._seen

    def _compute_loss(self, model, inputs):
        loss = super()._compute_loss(model, inputs)
        if self.model.training:
            logp, entropy, _ = self._seen
            self._note(logp.detach().float(), entropy.detach().float(), _loss_mask(inputs).bool(), inputs["summed_reward"])
        return loss

    def _note(self, logp, entropy, mask, reward):
        """Add up a micro-batch; at the end of a step, log the means over all processes."""
        tokens, entropy = mask.sum(1), entropy.masked_fill(~mask, 0).sum(1)
        right, wrong = reward > 0, reward <= 0  # NaN, for what no function scored, is neither
        sums = [x[rows].sum() for rows in (right, wrong, mask.any(1)) for x in (entropy, tokens)]
        sums += [log_perplexity(logp, mask).sum(), mask.any(1).sum()]
        self._sums = self._sums + torch.stack([x.float() for x in sums])
        if self.accelerator.sync_gradients:
            sums, self._sums = self.accelerator.reduce(self._sums, "sum").view(4, 2), 0.0
            of_right, of_wrong, of_all, log_ppl = (sums[:, 0] / sums[:, 1]).tolist()  # NaN: no such tokens; TRL leaves it out
            logged = {"entropy_right": of_right, "entropy_wrong": of_wrong, "log_ppl": log_ppl, "shaped": float(self._method != "grpo"),
                      "plateau": float(self.stage.plateau is not None)}  # fmt: skip
            for name, value in logged.items():
                self._metrics["train"][f"rlvr/{name}"].append(value)
            self.stage.entropies.append(of_all)


def _loss_mask(batch: dict):
    """The tokens that TRL learns from: not those of tools, nor of completions that were cut, with mask_truncated_completions."""
    return batch["completion_mask"] * batch.get("tool_mask", 1)
