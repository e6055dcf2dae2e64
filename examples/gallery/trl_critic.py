"""TRL's GRPOTrainer with a critic that predicts a distribution: each token gets an advantage of its
own. A toy reward, the shipped policy, a CPU.

    python examples/gallery/trl_critic.py [STEPS] [PICTURE]
"""

import sys

import matplotlib.pyplot as plt
from datasets import Dataset
from transformers import AutoModelForCausalLM, AutoTokenizer
from trl import GRPOConfig

from dfpo.integrations.trl import ValueFlowConfig, ValueFlowGRPOTrainer
from dfpo.rollout.policy import SHIPPED_POLICY
from dfpo.tasks import problem


def right(completions, answer, **_):
    return [
        float(text.split()[-4:] == a.split()[-4:])
        for text, a in zip(completions, answer, strict=True)
    ]


def main(steps=40, picture="runs/trl_critic.png"):
    drawn = [problem(0, "train", "math", "id", index) for index in range(400)]
    trainer = ValueFlowGRPOTrainer(
        AutoModelForCausalLM.from_pretrained(SHIPPED_POLICY),
        right,
        args=GRPOConfig(
            "runs/trl-critic", max_steps=int(steps), max_completion_length=48, beta=0.0,
            per_device_train_batch_size=32, num_generations=4, learning_rate=3e-4,
            lr_scheduler_type="constant", logging_steps=1, save_strategy="no", report_to="none",
            use_cpu=True, bf16=False, gradient_checkpointing=False, disable_tqdm=True,
        ),
        train_dataset=Dataset.from_list([{"prompt": p.prompt, "answer": p.answer} for p in drawn]),
        processing_class=AutoTokenizer.from_pretrained(SHIPPED_POLICY),
        value_flow=ValueFlowConfig(return_range=(0.0, 1.0), learning_rate=1e-3),
    )  # fmt: skip
    trainer.train()

    log = [row for row in trainer.state.log_history if "reward" in row]
    figure, (left, middle) = plt.subplots(1, 2, figsize=(9, 3), layout="constrained")
    left.plot([row["reward"] for row in log], color="#0072B2")
    left.set(title="Share of right answers", xlabel="step", ylim=(0, 1))
    middle.plot([row["value_flow/spread"] for row in log], color="#009E73")
    middle.set(title="Predicted standard deviation of the return", xlabel="step")
    figure.savefig(picture)
    print(f"right at first {log[0]['reward']:.2f}, at last {log[-1]['reward']:.2f}")


if __name__ == "__main__":
    main(*sys.argv[1:])
