"""DeepSpeed configurations that say something else than the run."""

import json

import pytest

from engine.config import ConfigError, OptimConfig, ParallelConfig, RunConfig
from engine.step.ranks.deepspeed_fields import refuse_contradictions

RUN = RunConfig(optim=OptimConfig(batch_size=64, clip_norm=1.0), parallel=ParallelConfig(micro_batch_size=16))


@pytest.mark.parametrize("name", ["zero1", "zero2", "zero2_offload", "zero3"])
def test_our_own_are_taken(root, name):
    refuse_contradictions(json.loads((root / "configs" / "deepspeed" / f"{name}.json").read_text()), RUN, 2)


def test_what_says_the_same_is_taken():
    same = {"train_batch_size": 64, "train_micro_batch_size_per_gpu": 16, "gradient_accumulation_steps": 2}
    refuse_contradictions(same | {"gradient_clipping": 1.0, "bf16": {"enabled": "auto"}}, RUN, 2)


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"train_batch_size": 128}, "train_batch_size: 128, and the run 64; --batch-size decides"),
        ({"train_micro_batch_size_per_gpu": 8}, "train_micro_batch_size_per_gpu: 8, and the run 16"),
        ({"gradient_accumulation_steps": 4}, "gradient_accumulation_steps: 4, and the run 2"),
        ({"gradient_clipping": 0.5}, "gradient_clipping: 0.5, and the run 1.0"),
        ({"communication_data_type": "bf16"}, "communication_data_type: bf16, and the run sends gradients in fp32"),
        ({"optimizer": {"type": "Adam"}}, "a section optimizer; --optimizer decides"),
        ({"scheduler": {}}, "a section scheduler"),
        ({"bf16": {"enabled": True}}, "turns bf16 on; --precision decides"),
        ({"amp": {"enabled": True}}, "turns amp on"),
        ({"bf16": True}, "bf16: True; it is a section in braces"),
        ({"data_types": {"grad_accum_dtype": "bf16"}}, "grad_accum_dtype: bf16, and the run adds gradients up in fp32"),
        ({"zero_optimization": 2}, "zero_optimization: 2; it is a section in braces"),
        ({"zero_optimization": {"stage": 4}}, "stage 4"),
        ({"zero_optimization": {"stage": 2, "bucket": 1}}, "bucket: 1 in zero_optimization; Extra inputs are not"),
        ({"zero_optimization": {"stage": 2, "reduce_bucket_size": "much"}}, "reduce_bucket_size: 'much' in zero_opt"),
        ({"zero_optimization": {"stage": 3, "offload_param": {"device": "cpu"}}}, "offload_param"),
    ],
)
def test_what_says_something_else_is_refused(fields, words):
    with pytest.raises(ConfigError, match=words):
        refuse_contradictions(fields, RUN, 2)
