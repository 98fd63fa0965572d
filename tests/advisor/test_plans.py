import pytest

from advisor.axes import accumulation, checkpointings, micro_batches, offloadings, sequences_a_card, shardings
from advisor.plans import RULES, Cell, draft_plan, enumerate_cells, name_card, screen_cell
from advisor.request import Request
from estimators.methods import framework_methods
from profiles.dataset import TASK_FORMS
from profiles.plan import Plan
from profiles.platform import load_platforms

REQUEST = Request(model="small-llama")


def reason(facts, platform, method, quantization, **request):
    dropped = screen_cell(Cell(platform, method, quantization), Request(model="small-llama", **request), facts)
    return None if dropped is None else (dropped.rule, dropped.reason)


def test_the_space_is_the_whole_product_once():
    cells = list(enumerate_cells())
    assert len(cells) == len(set(cells)) == 3 * 8 * 7
    assert {c.platform for c in cells} == set(load_platforms())
    assert {c.method for c in cells} == set(framework_methods())


def test_platform_table_covers_every_method_quantization_and_task():
    seen = 0
    for platform in load_platforms().values():
        assert set(platform.methods) == set(framework_methods())
        assert set(platform.quantizations) == {c.quantization for c in enumerate_cells()}
        for support in (*platform.methods.values(), *platform.quantizations.values(), *platform.tasks.values()):
            assert support.evidence
            seen += 1
        assert all(s.claim is not None for s in platform.methods.values())
    assert seen == 3 * (8 + 7 + 8)


@pytest.mark.parametrize(
    ("cell", "rule", "words"),
    [
        (("llamafactory", "adalora", "bf16"), "platform-method", "Invalid fine-tuning method"),
        (("llamafactory", "prompt", "bf16"), "platform-method", "published as 'yes'"),
        (("unsloth", "bitfit", "bf16"), "platform-method", "no BitFit"),
        (("unsloth", "qlora", "nf4"), "platform-quantization", "hard-coded"),
        (("hf", "full", "nf4"), "method", "cannot be trained"),
        (("hf", "qlora", "bf16"), "method", "plain LoRA"),
        (("hf", "lora", "nf4"), "method", "QLoRA"),
        (("hf", "bitfit", "bf16"), "method", "no bias"),
        (("hf", "full", "fp16"), "fp16-gradients", "GradScaler"),
        (("llamafactory", "lora", "fp32"), "platform-storage", "in bf16"),
    ],
)
def test_a_drop_names_its_rule_and_reason(make_facts, cell, rule, words):
    found = reason(make_facts(), *cell)
    assert found is not None
    assert found[0] == rule
    assert words in found[1]


def test_what_exists_is_not_dropped(make_facts):
    facts = make_facts()
    for cell in (("hf", "lora", "bf16"), ("hf", "prefix", "bf16"), ("llamafactory", "qlora", "nf4-dq"),
                 ("unsloth", "full", "bf16"), ("hf", "adalora", "nf4")):  # fmt: skip
        assert reason(facts, *cell) is None


def test_llamafactory_takes_weights_as_they_are_stored(make_facts):
    unnamed = make_facts()
    config = {
        "model_type": "llama", "hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2, "dtype": "float32",
        "num_attention_heads": 4, "vocab_size": 100, "max_position_embeddings": 128,
    }  # fmt: skip
    stored = make_facts(config=config)
    assert reason(unnamed, "llamafactory", "lora", "bf16") is None
    assert reason(stored, "llamafactory", "lora", "fp32") is None
    assert reason(stored, "llamafactory", "lora", "bf16")[0] == "platform-storage"
    assert reason(stored, "llamafactory", "qlora", "nf4-dq")[0] == "platform-storage"
    for cell in (("llamafactory", "full", "bf16"), ("hf", "lora", "bf16")):
        assert reason(stored, *cell) is None  # what LLaMA-Factory trains becomes fp32; Hugging Face converts
    assert reason(unnamed, "llamafactory", "qlora", "nf4-dq") is None
    assert reason(make_facts(bf16=False), "llamafactory", "qlora", "nf4-dq")[0] == "platform-storage"
    assert reason(make_facts(vendor="CPU"), "llamafactory", "qlora", "nf4-dq") is None


def test_hardware_rules(make_facts):
    assert reason(make_facts(vendor="CPU"), "unsloth", "lora", "bf16")[0] == "platform-hardware"
    assert reason(make_facts(bf16=False), "hf", "lora", "bf16")[0] == "card-dtype"
    assert reason(make_facts(bf16=False), "hf", "lora", "fp16") is None
    assert reason(make_facts(vendor="AMD"), "unsloth", "lora", "bf16")[0] == "platform-hardware"


def test_adapters_that_unsloth_would_pass_over_are_no_plans(make_facts):
    opt = {"model_type": "opt", "hidden_size": 64, "ffn_dim": 96, "num_hidden_layers": 2, "num_attention_heads": 4}
    facts = make_facts(config={**opt, "vocab_size": 128, "max_position_embeddings": 2048})
    found = reason(facts, "unsloth", "lora", "bf16")
    assert found[0] == "platform-layers"
    assert "fc1" in found[1]
    assert reason(facts, "unsloth", "full", "bf16") is reason(facts, "hf", "lora", "bf16") is None


def test_the_request_restricts(make_facts):
    facts = make_facts()
    assert reason(facts, "hf", "lora", "bf16", methods=("full",))[0] == "not-asked-for"
    assert reason(facts, "hf", "lora", "bf16", skill="low-code")[0] == "low-code"
    assert reason(facts, "llamafactory", "lora", "bf16", skill="low-code") is None
    assert reason(facts, "hf", "prompt", "bf16", deployment="gguf")[0] == "deployment"
    assert reason(facts, "hf", "lora", "bf16", deployment="gguf") is None


def test_every_rule_has_a_test_above():
    exercised = {"not-asked-for", "low-code", "platform-method", "platform-quantization", "platform-hardware",
                 "platform-layers", "card-dtype", "platform-storage", "fp16-gradients", "deployment",
                 "method"}  # fmt: skip
    assert set(RULES) - exercised == {"platform-task"}


def test_platform_task(make_facts):
    facts = make_facts(task="classification")
    assert reason(facts, "llamafactory", "lora", "bf16")[0] == "platform-task"


def test_micro_batches_complete_the_global_batch_exactly(make_facts):
    facts = make_facts()
    for size in (1, 2, 6, 12, 16, 17):
        request = Request(model="m", global_batch_size=size)
        share = sequences_a_card(request, facts)
        for micro in micro_batches(request, facts, share):
            assert micro * accumulation(micro, share) == size
    of_two = sequences_a_card(Request(model="m", global_batch_size=16), make_facts(n_gpus=2))
    assert micro_batches(Request(model="m"), facts, of_two) == (1, 2, 4, 8)


def test_small_data_turns_the_guards_on(make_facts):
    cell = Cell("hf", "lora", "bf16")
    small = draft_plan(cell, REQUEST, make_facts(examples=200, mean_len=100))
    large = draft_plan(cell, REQUEST, make_facts(examples=50_000, mean_len=100))
    assert small.early_stopping_patience > 0 == large.early_stopping_patience
    assert small.lora_dropout > 0 == large.lora_dropout
    assert small.eval_fraction > large.eval_fraction


def test_checkpointing_is_what_the_platform_has(make_facts):
    assert checkpointings(Cell("hf", "prefix", "bf16"), make_facts()) == ("none",)
    assert checkpointings(Cell("hf", "lora", "bf16"), make_facts()) == ("none", "full")
    assert checkpointings(Cell("unsloth", "lora", "bf16"), make_facts(seq_len=512)) == ("none", "unsloth")
    assert checkpointings(Cell("unsloth", "lora", "bf16"), make_facts(seq_len=511)) == ("none", "full")


def test_unsloth_is_not_sharded(make_facts):
    facts = make_facts(n_gpus=2)
    assert shardings(Cell("hf", "lora", "bf16"), facts) == ("ddp", "fsdp2", "zero3")
    assert shardings(Cell("hf", "qlora", "nf4"), facts) == ("ddp", "fsdp2")
    assert shardings(Cell("hf", "full", "bf16"), facts) == ("ddp", "fsdp2", "zero1", "zero2", "zero3")
    assert shardings(Cell("unsloth", "lora", "bf16"), facts) == shardings(Cell("hf", "lora", "int8"), facts) == ("ddp",)


def test_one_card_offloads_by_zero_only(make_facts):
    one, two = make_facts(), make_facts(n_gpus=2)
    assert offloadings(Cell("hf", "full", "bf16"), one) == ("zero2", "zero3")
    assert offloadings(Cell("hf", "lora", "bf16"), one) == ("zero3",)
    assert offloadings(Cell("hf", "qlora", "nf4"), one) == offloadings(Cell("unsloth", "lora", "bf16"), two) == ()
    assert offloadings(Cell("hf", "qlora", "nf4"), two) == ("fsdp2",)


def test_a_plan_names_its_card_so_that_it_can_be_replayed(make_facts):
    facts = make_facts(gib=20.0)
    plan = draft_plan(Cell("hf", "lora", "bf16"), REQUEST, facts)
    again = Plan.model_validate_json(plan.model_dump_json())
    assert again == plan
    assert again.gpu["memory_gib"] == 20.0
    assert name_card(make_facts(vendor="CPU").hardware) == "cpu"


def test_the_platform_table_says_what_the_emitters_do():
    """`emitted_tasks` is data so that a plain answer need not load the emitters; it has to agree with them."""
    from advisor.emit import Source, emitters
    from profiles.families import describe_model

    config = {
        "model_type": "llama", "architectures": ["LlamaForCausalLM"], "hidden_size": 64, "intermediate_size": 128,
        "num_hidden_layers": 2, "num_attention_heads": 4, "vocab_size": 100, "max_position_embeddings": 128,
    }  # fmt: skip
    model = describe_model(config, "tiny")
    checked = 0
    for name, platform in load_platforms().items():
        for task in platform.tasks:
            form = TASK_FORMS[task][0]
            plan = Plan(model="tiny", platform=name, task=task, seq_len=64, micro_batch_size=2)
            refusal = emitters()[name].refusal(plan, model, Source(model_ref="tiny", form=form))
            assert (refusal is None) == (task in platform.emitted_tasks), (name, task, refusal)
            checked += 1
    assert checked == 24
