"""The readers against the releases themselves: their example files, their parsers, and every key that they know."""

import ast
import subprocess
import sys
import tarfile
from collections import Counter
from contextlib import suppress
from pathlib import Path

import pytest
import yaml

from advisor.check import check
from advisor.readers import read_file
from profiles.config_keys import load_key_tables
from profiles.errors import AdviseError

pytestmark = pytest.mark.platform
ROOT = Path(__file__).parents[2]
CACHE = ROOT / ".cache" / "sdists"
CONFIGS = ROOT / "tests" / "golden" / "configs"


def unpacked(name, version):
    """The folder of a release's sources, downloaded once."""
    folder = CACHE / f"{name}-{version}"
    if not folder.is_dir():
        wanted = f"{name}=={version}"
        command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--no-binary", ":all:", wanted]
        done = subprocess.run([*command, "-d", CACHE], capture_output=True, text=True, check=False)
        archive = CACHE / f"{name}-{version}.tar.gz"
        if not archive.is_file():
            pytest.skip(f"pip gives no sources of {wanted}: {done.stderr.strip()[-200:]}")
        with tarfile.open(archive) as tar:
            tar.extractall(CACHE, filter="data")
    return folder


@pytest.fixture(scope="module")
def llamafactory():
    return unpacked("llamafactory", "0.9.5")


@pytest.fixture(scope="module")
def trl_sources():
    return unpacked("trl", "1.16.0")


@pytest.fixture(scope="module")
def axolotl():
    return unpacked("axolotl", "0.19.0")


def outcome(path):
    """A word for what becomes of a file: judged (a plan that can be estimated), or why not."""
    try:
        reading = read_file(path.read_text(), path.name)
    except AdviseError as error:
        return f"no format: {error.message}"
    if reading.plan is None:
        return f"{reading.format}, no training: {reading.unjudged}"
    return f"{reading.format}, {'not judged: ' + reading.unjudged if reading.unjudged else 'judged'}"


def count(outcomes):
    return Counter(text.split(":")[0] for text in outcomes.values())


def test_every_example_of_llamafactory_is_answered(llamafactory):
    files = sorted((llamafactory / "examples").rglob("*.yaml"))
    found = {path.relative_to(llamafactory / "examples").as_posix(): outcome(path) for path in files}
    assert count(found) == {
        "llamafactory, judged": 35,
        "llamafactory, not judged": 13,
        "llamafactory, no training": 23,
        "accelerate, no training": 10,
        "no format": 1,
    }
    assert "no format that is known" in found["extras/multi_tokens/tokens_cfg.yaml"]
    for folder, words in {
        "merge_lora": "export", "inference": "chat", "accelerate": "it launches on", "v1": "USE_V1",
        "megatron": "Megatron", "ktransformers/train_lora": "KTransformers",
    }.items():  # fmt: skip
        inside = [text for name, text in found.items() if name.startswith(f"{folder}/")]
        assert inside
        assert all(words in text for text in inside), folder
    assert "images" in found["train_lora/qwen3vl_lora_sft.yaml"]
    assert "prepares the data" in found["train_lora/qwen3_preprocess.yaml"]


def test_examples_of_llamafactory_whose_model_is_known_are_estimated(llamafactory):
    def verdict(name, **hardware):
        return check(read_file((llamafactory / "examples" / name).read_text()), offline=True, **hardware)

    assert verdict("train_lora/qwen3_lora_sft.yaml", vram_gib=24).verdict == "fits"
    assert verdict("train_full/qwen3_full_sft.yaml", gpu="rtx4090").verdict == "does not fit"
    assert verdict("train_lora/qwen3_lora_sft_ray.yaml", vram_gib=24).plan.n_gpus == 4
    assert verdict("train_lora/qwen3_lora_dpo.yaml", vram_gib=24).verdict == "fits"
    assert "GPTQ" in verdict("train_qlora/llama3_lora_sft_gptq.yaml", vram_gib=24).unjudged
    assert "AQLM" in verdict("train_qlora/llama3_lora_sft_aqlm.yaml", vram_gib=24).unjudged


def refused(folder):
    """Example files that their own release would not take, by the keys that it stops at."""
    found = {}
    for path in sorted(folder.rglob("*.y*ml")):
        with suppress(AdviseError):
            reading = read_file(path.read_text(), path.name)
            keys = [finding.key for finding in reading.findings if finding.level == "error"]
            if keys and not reading.unjudged:
                found[path.relative_to(folder).as_posix()] = keys
    return found


def test_few_examples_are_refused_and_those_rightly(llamafactory, axolotl):
    """LLaMA-Factory's parser says of the first that its key is not used; the optimizer's error was seen in runs."""
    assert refused(llamafactory / "examples") == {
        "extras/fp8/llama3_fp8_fsdp_sft.yaml": ["fsdp_transformer_layer_cls_to_wrap"],
        "extras/apollo/llama3_full_sft.yaml": ["optim"],
        "extras/galore/llama3_full_sft.yaml": ["optim"],
    }
    assert refused(axolotl / "examples") == {
        "archived/pythia-12b/config.yml": ["max_packed_sequence_len"],
        "archived/stablelm-2/1.6b/fft.yml": ["flash_attn_rms_norm"],
        "archived/stablelm-2/1.6b/lora.yml": ["flash_attn_rms_norm"],
    }


def test_every_configuration_of_trl_is_answered(trl_sources):
    files = sorted((trl_sources / "trl").rglob("*.yaml"))
    found = {path.stem: outcome(path) for path in files}
    assert count(found) == {"accelerate, no training": 7}
    assert "8 cards, sharding fsdp2" in found["fsdp2"]
    assert "8 cards, sharding zero3" in found["zero3"]


def test_every_example_of_axolotl_is_answered(axolotl):
    files = sorted(path for path in (axolotl / "examples").rglob("*") if path.suffix in (".yml", ".yaml"))
    found = {path.relative_to(axolotl).as_posix(): outcome(path) for path in files}
    assert count(found) == {"axolotl, judged": 152, "axolotl, not judged": 115, "no format": 2}
    assert all("cloud" in name for name, text in found.items() if text.startswith("no format"))


def classes_of(folder, pattern):
    """The classes in some files by name, by ast."""
    nodes = (node for path in sorted(folder.glob(pattern)) for node in ast.parse(path.read_text()).body)
    return {node.name: node for node in nodes if isinstance(node, ast.ClassDef)}


def fields_of(classes):
    """The fields that these classes take."""
    parts = (part for node in classes for part in node.body if isinstance(part, ast.AnnAssign))
    return {
        part.target.id for part in parts if isinstance(part.target, ast.Name) and "init=False" not in ast.unparse(part)
    }


def test_the_tables_know_every_key_of_llamafactory(llamafactory):
    classes = classes_of(llamafactory / "src" / "llamafactory" / "hparams", "*_args.py")
    fields = fields_of(node for name, node in classes.items() if name != "EvaluationArguments")  # of another command
    assert len(fields) > 200
    assert fields - load_key_tables()["llamafactory"].keys == set()


def test_the_tables_know_every_key_of_trl():
    from trl import DatasetMixtureConfig, ModelConfig, ScriptArguments, SFTConfig

    fields = {
        f for c in (ScriptArguments, SFTConfig, ModelConfig, DatasetMixtureConfig) for f in c.__dataclass_fields__
    }
    assert len(fields) > 150
    assert fields - load_key_tables()["trl"].keys == set()
    table = load_key_tables()["trl"]
    assert set(table.removed) & fields == set()
    shared = load_key_tables()["training_arguments"]
    assert shared.harmless | shared.read <= fields


def test_the_tables_know_every_key_of_axolotl(axolotl):
    classes = classes_of(axolotl / "src" / "axolotl" / "utils" / "schemas", "*.py")
    bases = {base.id for base in classes["AxolotlInputConfig"].bases if isinstance(base, ast.Name)}
    fields = fields_of(classes[name] for name in ("AxolotlInputConfig", *bases) if name in classes)
    assert len(fields) > 380
    assert fields - load_key_tables()["axolotl"].keys == set()


@pytest.mark.parametrize("path", sorted((CONFIGS / "trl").glob("*.yaml")), ids=lambda path: path.stem)
def test_trls_own_parser_agrees(path, tmp_path):
    """What it leaves over are the keys that we call unknown or removed, and accelerate's; what it takes is the plan."""
    from trl import DatasetMixtureConfig, ModelConfig, ScriptArguments, SFTConfig, TrlParser

    content = yaml.safe_load(path.read_text())
    safe = {**content, "use_cpu": True, "bf16": False, "fp16": False, "deepspeed": None, "output_dir": str(tmp_path)}
    if content.get("save_strategy") is False:
        safe["save_strategy"] = "no"  # the bare no itself is refused, by the next test
    file = tmp_path / "safe.yaml"
    file.write_text(yaml.safe_dump({k: v for k, v in safe.items() if v is not None}))
    parser = TrlParser((ScriptArguments, SFTConfig, ModelConfig, DatasetMixtureConfig))
    _, args, model, _, left = parser.parse_args_and_config(["--config", str(file)], return_remaining_strings=True)
    left_over = {word.removeprefix("--") for word in left[::2]}
    reading = read_file(path.read_text())
    launch = {"accelerate_config", "num_processes", "zero_stage", "offload_optimizer_device"}
    other_trainers = set(load_key_tables()["trl"].void)
    unknown = {n.key for n in reading.keys if n.kind == "unknown"} | (load_key_tables()["trl"].removed.keys() & content)
    assert left_over - launch - other_trainers == unknown
    plan = reading.plan
    assert plan.micro_batch_size == args.per_device_train_batch_size
    assert plan.gradient_accumulation_steps == args.gradient_accumulation_steps
    assert plan.learning_rate == args.learning_rate
    assert plan.num_epochs == args.num_train_epochs
    assert plan.seq_len == args.max_length
    assert plan.packing == args.packing
    assert plan.optimizer == args.optim
    assert (plan.gradient_checkpointing != "none") == args.gradient_checkpointing
    if plan.method != "full":
        assert (plan.lora_rank, plan.lora_alpha, plan.lora_dropout) == (
            model.lora_r,
            model.lora_alpha,
            model.lora_dropout,
        )


def test_trls_own_parser_refuses_a_bare_no(tmp_path):
    from trl import SFTConfig, TrlParser

    file = tmp_path / "no.yaml"
    file.write_text(f"save_strategy: no\nuse_cpu: true\nbf16: false\noutput_dir: {tmp_path}\n")
    with pytest.raises(ValueError, match="False is not a valid SaveStrategy"):
        TrlParser((SFTConfig,)).parse_args_and_config(["--config", str(file)])
