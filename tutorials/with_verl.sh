#!/usr/bin/env bash
# The 7B run of Deng et al. 2025 with perplexity shaping, in verl 0.9.1 on one node of 8 GPUs. Composed and validated by verl, never run here.
# Position shaping: algorithm.adv_estimator=rlvr_pos +algorithm.rlvr.pos_alpha=0.1 +algorithm.rlvr.shape_start=201 +algorithm.rlvr.shape_stop=299
# Each value is that of the paper's released script unless a comment says otherwise. See beyond_one_gpu.md.
set -euo pipefail
cd "$(dirname "$0")/.." # so that verl and its workers find rlvr. Several nodes: this folder lies on storage that all of them share
export PYTHONPATH="$PWD" VERL_USE_EXTERNAL_MODULES=rlvr.adapters.verl
workers=+ray_kwargs.ray_init.runtime_env.env_vars # those of a Ray cluster that runs already do not inherit what is exported here

python -m rlvr.adapters.parquet still-3-rl-90k train.parquet
python -m rlvr.adapters.parquet aime24 val.parquet --split test

settings=(
    algorithm.adv_estimator=rlvr_ppl +algorithm.rlvr.ppl_alpha=0.01
    algorithm.use_kl_in_reward=False
    algorithm.filter_groups.enable=True algorithm.filter_groups.metric=acc # not by reward, which the length changes too
    "data.train_files='$PWD/train.parquet'" "data.val_files='$PWD/val.parquet'" data.truncation=left
    data.train_batch_size=512 data.max_prompt_length=1024 data.max_response_length=8192
    actor_rollout_ref.model.path=Qwen/Qwen2.5-7B
    actor_rollout_ref.model.use_remove_padding=True actor_rollout_ref.model.enable_gradient_checkpointing=True
    actor_rollout_ref.actor.strategy=fsdp2 # ours: the paper's script does it with the first FSDP
    actor_rollout_ref.actor.ppo_mini_batch_size=32 actor_rollout_ref.actor.ppo_epochs=1 actor_rollout_ref.actor.shuffle=False
    actor_rollout_ref.actor.use_dynamic_bsz=True actor_rollout_ref.actor.ppo_max_token_len_per_gpu=18432 # ours: two of the longest rows
    actor_rollout_ref.actor.clip_ratio_low=0.2 actor_rollout_ref.actor.clip_ratio_high=0.28
    actor_rollout_ref.actor.clip_ratio_c=1e9 # the paper has no third clip, verl has one at 3
    actor_rollout_ref.actor.loss_agg_mode=token-mean actor_rollout_ref.actor.use_kl_loss=False actor_rollout_ref.actor.entropy_coeff=0
    actor_rollout_ref.actor.optim.lr=1e-6 actor_rollout_ref.actor.optim.lr_warmup_steps=10 actor_rollout_ref.actor.optim.weight_decay=0.1
    actor_rollout_ref.actor.grad_clip=1.0
    actor_rollout_ref.rollout.name=vllm actor_rollout_ref.rollout.n=8 actor_rollout_ref.rollout.temperature=1.0 actor_rollout_ref.rollout.top_p=1.0
    actor_rollout_ref.rollout.tensor_model_parallel_size=1 actor_rollout_ref.rollout.gpu_memory_utilization=0.6 # ours
    actor_rollout_ref.rollout.val_kwargs.temperature=0.6 actor_rollout_ref.rollout.val_kwargs.top_p=0.95
    actor_rollout_ref.rollout.val_kwargs.do_sample=True actor_rollout_ref.rollout.val_kwargs.n=8 # the paper's file has each problem 8 times
    reward.custom_reward_function.path=pkg://rlvr.adapters.verl reward.custom_reward_function.name=compute_score
    reward.reward_manager.name=dapo +reward.reward_kwargs.max_resp_len=8192 # the soft penalty for answers that are nearly too long
    +reward.reward_kwargs.overlong_buffer_cfg.enable=True +reward.reward_kwargs.overlong_buffer_cfg.len=1024
    +reward.reward_kwargs.overlong_buffer_cfg.penalty_factor=1.0 +reward.reward_kwargs.overlong_buffer_cfg.log=False
    trainer.nnodes=1 trainer.n_gpus_per_node=8 trainer.total_training_steps=600 trainer.test_freq=10 trainer.save_freq=20
    "$workers.PYTHONPATH='$PWD'" "$workers.VERL_USE_EXTERNAL_MODULES=$VERL_USE_EXTERNAL_MODULES"
    "trainer.logger=[console]" trainer.project_name=rlvr trainer.experiment_name=ppl-7b
)
python -m verl.trainer.main_ppo "${settings[@]}" "$@"
