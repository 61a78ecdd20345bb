"""The checks of rlvr/adapters/verl.py that need verl itself. tests/verl.sh makes an environment for them and runs them with pytest.

They are no part of `python -m pytest`, which does not collect this file: verl wants other versions of what this project needs.
"""

import os
import re
import shlex
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

os.environ["VERL_USE_EXTERNAL_MODULES"] = "rlvr.adapters.verl"
ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))

import numpy as np
import pytest
import torch
import verl
from omegaconf import OmegaConf
from tensordict import NonTensorStack, TensorDict
from verl import DataProto
from verl.trainer.ppo import core_algos, ray_trainer
from verl.trainer.ppo.v1 import trainer_base
from verl.trainer.ppo.v1 import utils as v1
from verl.trainer.ppo.v1.trainer_sync import PPOTrainerSync

from rlvr.adapters import parquet
from rlvr.adapters import verl as adapter
from rlvr.advantage import METHODS, grpo_advantages, keep_sign, shape
from rlvr.loaders.sources import HUB
from rlvr.run.cli import parse_command

N, T, STEP = 32, 40, 7
NAMES = {"rlvr_" + m.replace("+", "_").replace("-", "_"): m for m in (*METHODS, "ppl+pos")}
STRENGTHS = {"ppl_alpha": 0.3, "pos_alpha": 0.2, "clip_cov_share": 0.1, "clip_cov_low": 0.1}


def batch() -> dict:
    """Groups of eight whose rows lie in any order; one row without a token, of a group of its own, as verl fills up a batch."""
    draw = torch.Generator().manual_seed(0)
    lengths = torch.randint(3, T + 1, (N,), generator=draw)
    lengths[0], lengths[5] = T, 0
    mask = (torch.arange(T) < lengths[:, None]).long()
    uid = np.array([f"problem-{i}" for i in (torch.arange(N) // 8)[torch.randperm(N, generator=draw)].tolist()], dtype=object)
    uid[5] = "filler"
    rewards = torch.zeros(N, T)
    rewards[torch.arange(N), (lengths - 1).clamp(min=0)] = torch.randint(0, 2, (N,), generator=draw) * 2.0 - 1
    rewards[5] = 0
    logp, entropy = -torch.rand(N, T, generator=draw) * mask, torch.rand(N, T, generator=draw) * mask
    return dict(mask=mask, uid=uid, rewards=rewards, logp=logp, entropy=entropy)


def expected(b: dict, method: str, learn_from: str = "all", **strengths):
    """The same by rlvr.advantage alone."""
    names = list(dict.fromkeys(b["uid"]))  # in this order the shams draw
    group = torch.tensor([names.index(u) for u in b["uid"]])
    rewards = b["rewards"].sum(-1)
    scored = rewards.where(b["mask"].any(1), torch.nan)
    more = dict(entropy=b["entropy"], rewards=scored, step=STEP)
    return keep_sign(shape(method, grpo_advantages(rewards, group), b["logp"], b["mask"].bool(), group, **more, **strengths), learn_from)


def data_of(b: dict, without: str = "") -> DataProto:
    tensors = {"token_level_rewards": b["rewards"], "response_mask": b["mask"], "old_log_probs": b["logp"], "entropy": b["entropy"]}
    tensors.pop(without, None)
    return DataProto(batch=TensorDict(tensors, batch_size=N), non_tensor_batch={"uid": b["uid"]})


def algorithm(name: str, **rlvr):
    return OmegaConf.create({"adv_estimator": name, "gamma": 1.0, "lam": 1.0, "use_kl_in_reward": False, "rlvr": rlvr})


class Store:
    """What verl asks of TransferQueue, in memory: the fields of a batch, rows of unequal length."""

    def __init__(self, b: dict):
        lengths = b["mask"].sum(1).clamp(min=1).tolist()  # a filler has one token, which its mask leaves out
        nest = lambda x: torch.nested.as_nested_tensor([row[:n] for row, n in zip(x, lengths)], layout=torch.jagged)
        self.fields = {"response_mask": nest(b["mask"]), "rm_scores": nest(b["rewards"]), "old_log_probs": nest(b["logp"]),
                       "entropy": nest(b["entropy"]), "uid": NonTensorStack(*b["uid"])}  # fmt: skip
        self.asked, self.written = [], {}

    def kv_batch_get(self, keys, partition_id, select_fields):
        self.asked.append(select_fields)
        found = {name: self.fields[name] for name in select_fields if name in self.fields}
        return TensorDict(found, batch_size=N)

    def kv_batch_put(self, keys, partition_id, fields):
        self.written |= dict(fields.items())


class Rows:
    """What a trainer of verl hands about: the names of rows that TransferQueue holds."""

    def __init__(self, keys: list[str]):
        self.keys, self.partition_id = keys, "train"

    def __len__(self) -> int:
        return len(self.keys)


def by_the_trainer(monkeypatch, b: dict, name: str, **rlvr):
    """The advantages that verl's own trainer writes back for the batch."""
    store = Store(b)
    monkeypatch.setattr(trainer_base, "tq", store)
    trainer = PPOTrainerSync.__new__(PPOTrainerSync)
    rollout = OmegaConf.create({"rollout": {"n": 8}})
    trainer.config = SimpleNamespace(algorithm=algorithm(name, **rlvr), actor_rollout_ref=rollout)
    trainer.global_steps = STEP
    trainer._compute_advantage(Rows([f"{u}_0_{i}" for i, u in enumerate(b["uid"])]), {})
    return store.written["advantages"], store


@pytest.mark.parametrize("name", NAMES)
def test_verls_own_trainer_gives_what_rlvr_advantage_gives(name, monkeypatch):
    b, method = batch(), NAMES[name]
    written, store = by_the_trainer(monkeypatch, b, name, **STRENGTHS)
    wanted = expected(b, method, **STRENGTHS)
    for row, want, mask in zip(written.unbind(), wanted, b["mask"].bool()):
        assert torch.equal(row[: mask.sum()], want[mask])
    assert (method == "grpo") == torch.equal(wanted, expected(b, "grpo"))  # it was shaped
    reads_entropy = "entropy" in getattr(METHODS.get(method), "reads", "")
    assert any("entropy" in fields for fields in store.asked) == reads_entropy  # it is fetched for those alone that read it


@pytest.mark.parametrize("name", ["rlvr_ppl", "rlvr_pos", "rlvr_ppl_pos"])
def test_so_do_the_functions_that_verls_trainers_call(name):
    b = batch()
    for compute in (ray_trainer.compute_advantage, v1.compute_advantage_for_multi_trajectories):
        keys = {} if compute is ray_trainer.compute_advantage else {"batch_keys": [f"{u}_0_{i}" for i, u in enumerate(b["uid"])]}
        data = compute(data_of(b), adv_estimator=name, config=algorithm(name, **STRENGTHS), **keys)
        assert torch.equal(data.batch["advantages"], expected(b, NAMES[name], **STRENGTHS))


def test_methods_can_be_joined_and_tokens_be_chosen_by_sign(monkeypatch):
    b = batch()
    written, _ = by_the_trainer(monkeypatch, b, "rlvr", method="ppl+forks", learn_from="negative", forks_share=0.5)
    wanted = expected(b, "ppl+forks", "negative", forks_share=0.5)
    for row, want, mask in zip(written.unbind(), wanted, b["mask"].bool()):
        assert torch.equal(row[: mask.sum()], want[mask])


def test_outside_the_window_it_is_grpo(monkeypatch):
    b = batch()
    for start, method in ((STEP, "pos"), (STEP + 1, "grpo")):
        written, _ = by_the_trainer(monkeypatch, b, "rlvr_pos", shape_start=start)
        wanted = expected(b, method)
        assert all(torch.equal(row[: m.sum()], want[m]) for row, want, m in zip(written.unbind(), wanted, b["mask"].bool()))


def test_verls_own_grpo_gives_our_plain_advantages():
    b = batch()
    own, _ = core_algos.compute_grpo_outcome_advantage(b["rewards"], b["mask"].float(), b["uid"])
    rows = torch.arange(N) != 5  # verl gives a group of one its reward, we give it nothing
    assert torch.equal(own[rows], expected(b, "grpo")[rows])


def test_without_old_log_probs_it_says_so():
    with pytest.raises(ValueError, match="needs the old log-probs, and none reached it"):
        config = algorithm("rlvr_ppl")
        ray_trainer.compute_advantage(data_of(batch(), without="old_log_probs"), adv_estimator="rlvr_ppl", config=config)


def test_settings_are_checked_before_a_trainer_is_built():
    for name, rlvr, message in (("rlvr_pos", {"shape_start": "plateau"}, "keeps no entropy"), ("rlvr_ppl", {"alpha": 1}, "no setting of shaping")):
        with pytest.raises(ValueError, match=message):
            PPOTrainerSync(SimpleNamespace(algorithm=algorithm(name, **rlvr)))
        with pytest.raises(ValueError, match=message):
            ray_trainer.RayPPOTrainer(SimpleNamespace(algorithm=algorithm(name, **rlvr)), None, {}, None)


def test_it_is_loaded_in_a_worker_of_a_cluster_that_knows_only_the_recipe(monkeypatch):
    """The recipe hands over both variables: the processes of a cluster that runs already have not inherited them."""
    import ray
    from verl.trainer.constants_ppo import get_ppo_ray_runtime_env

    config = composed(recipe())
    merged = OmegaConf.merge(get_ppo_ray_runtime_env(config), config.ray_kwargs.ray_init.runtime_env)  # as verl's main_ppo does it
    for name in ("VERL_USE_EXTERNAL_MODULES", "PYTHONPATH"):
        monkeypatch.delenv(name, raising=False)
    ray.init(num_cpus=1, runtime_env=OmegaConf.to_container(merged), include_dashboard=False, logging_level="ERROR")
    try:

        @ray.remote
        class Worker:
            def names(self):
                import verl  # noqa: F401
                from verl.trainer.ppo import core_algos, ray_trainer

                return sorted(core_algos.ADV_ESTIMATOR_REGISTRY), ray_trainer.compute_advantage.__name__, hasattr(
                    ray_trainer.compute_advantage, "__wrapped__"
                )

        names, function, wrapped = ray.get(Worker.remote().names.remote())
    finally:
        ray.shutdown()
    assert set(NAMES) <= set(names) and function == "compute_advantage" and wrapped


def recipe() -> list[str]:
    """The settings of tutorials/with_verl.sh, as bash hands them over."""
    script = (ROOT / "tutorials" / "with_verl.sh").read_text()
    script = script.replace("python -m verl.trainer.main_ppo", "printf '%s\\n'").replace("\npython -m rlvr", "\n: ")
    script = script.replace('"$0"', shlex.quote(str(ROOT / "tutorials" / "with_verl.sh")))
    return subprocess.run(["bash", "-c", script], cwd="/", capture_output=True, text=True, check=True).stdout.splitlines()


def composed(overrides: list[str]):
    from hydra import compose, initialize_config_dir

    with initialize_config_dir(config_dir=str(Path(verl.__file__).parent / "trainer" / "config"), version_base=None):
        return compose("ppo_trainer", overrides=overrides)


def test_verl_accepts_the_recipe():
    from verl.utils.config import validate_config

    config = composed(recipe())
    validate_config(config, use_reference_policy=False, use_critic=False)
    assert adapter.method_of(config.algorithm) == "ppl" and config.algorithm.rlvr.ppl_alpha == 0.01
    actor = config.actor_rollout_ref.actor
    assert (actor.clip_ratio_low, actor.clip_ratio_high, actor.optim.lr, config.data.train_batch_size) == (0.2, 0.28, 1e-6, 512)
    assert actor.clip_ratio_c >= 1e6  # no third clip: verl's default is 3
    assert config.algorithm.filter_groups.metric == "acc" and config.trainer.use_v1


def test_the_recipe_writes_its_problems_where_it_reads_them():
    """Its lines are read, not run: the problems come from the Hub."""
    lines = [shlex.split(line) for line in (ROOT / "tutorials" / "with_verl.sh").read_text().splitlines() if line.startswith("python -m rlvr")]
    read = composed(recipe()).data
    for words, file in zip(lines, (read.train_files, read.val_files), strict=True):
        config = parse_command(parquet.ParquetConfig, "x", words[3:])
        assert words[:3] == ["python", "-m", "rlvr.adapters.parquet"] and config.data in HUB and file == str(ROOT / config.out)


def test_verl_refuses_a_setting_that_it_does_not_know():
    with pytest.raises(Exception, match="not in struct|Could not override"):
        composed([*recipe(), "actor_rollout_ref.actor.clip_ratio_hihg=0.3"])


def test_the_reward_is_our_verifier():
    for text, right in ((r"so \boxed{\frac{2}{4}}", True), (r"so \boxed{3}", False)):
        assert adapter.compute_score("gsm8k", text, "0.5", extra_info={}) == {"score": 1.0 if right else -1.0, "acc": right}
    path = next(word for word in recipe() if word.startswith("reward.custom_reward_function.path"))
    from verl.utils.import_utils import load_extern_object

    assert load_extern_object(path.split("=", 1)[1], "compute_score").__module__.endswith("verl")
    assert re.search("compute_score", shlex.join(recipe()))
