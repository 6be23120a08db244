"""What importing the package does to the process and to timm's registry; in fresh processes."""

import json
import subprocess
import sys
import textwrap

import pytest

HEAVY = ["pandas", "matplotlib", "plotly", "fvcore", "typer", "rich", "sklearn", "pydantic"]


def fresh_python(script):
    """stdout of a script in a new process, in which every warning is an error."""
    run = subprocess.run(
        [sys.executable, "-W", "error", "-c", textwrap.dedent(script)],
        capture_output=True,
        text=True,
    )
    assert run.returncode == 0, run.stderr
    assert run.stderr == ""
    return run.stdout


def test_importing_is_quiet_and_light():
    """The second half shows that a heavy import would be seen."""
    report = f"print('heavy:', *(name for name in {HEAVY!r} if name in sys.modules))"
    script = f"""
        import sys
        import efficient_vits
        {report}
        import efficient_vits.efficiency
        {report}
    """
    first, second = fresh_python(script).splitlines()
    assert first == "heavy:"
    assert "fvcore" in second


@pytest.mark.parametrize(
    "script",
    ["import warnings; warnings.warn('old')", "import sys; print('hello', file=sys.stderr)"],
)
def test_a_noisy_process_would_be_seen(script):
    with pytest.raises(AssertionError):
        fresh_python(script)


REGISTRY = """
    import json
    import timm
    from timm.models import get_arch_pretrained_cfgs, get_pretrained_cfg, model_entrypoint


    def picture():
        '''Everything that timm's registry answers.'''
        names = timm.list_models()
        return {
            "entry points": {name: id(model_entrypoint(name)) for name in names},
            "modules": {m: timm.list_models(module=m) for m in timm.list_modules()},
            "cfgs": {name: repr(get_pretrained_cfg(name)) for name in names},
            "pretrained": {
                tag: repr(get_pretrained_cfg(tag)) for tag in timm.list_pretrained()
            },
            "default tags": {
                name: list(get_arch_pretrained_cfgs(name)) for name in names
            },
        }

    pictures = [picture()]
    import efficient_vits
    pictures.append(picture())


    # What must not happen: a model of timm's is registered again.
    import sys, types, warnings
    from timm.models import generate_default_cfgs, register_model

    def vit_tiny_patch16_224(pretrained=False, **kwargs): pass

    zoo = types.ModuleType("zoo.vision_transformer")
    zoo.default_cfgs = generate_default_cfgs(
        {"vit_tiny_patch16_224.own": {"input_size": (3, 99, 99)}}
    )
    sys.modules[zoo.__name__] = zoo
    vit_tiny_patch16_224.__module__ = zoo.__name__
    zoo.vit_tiny_patch16_224 = vit_tiny_patch16_224
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # timm warns of it
        register_model(vit_tiny_patch16_224)
    pictures.append(picture())
    print(json.dumps(pictures))
"""


def changes(before, after):
    """What of timm's is not as it was, as (table, key)."""
    return [
        (table, key)
        for table, entries in before.items()
        for key, value in entries.items()
        if after[table].get(key) != value
    ]


@pytest.fixture(scope="module")
def pictures():
    return json.loads(fresh_python(REGISTRY))


def test_nothing_of_timms_changes(pictures):
    before, after, _ = pictures
    assert len(before["entry points"]) > 1000
    assert all(before.values())
    assert changes(before, after) == []


def test_what_is_added_is_exactly_the_filter_of_our_name(pictures):
    before, after, _ = pictures
    assert after["modules"].keys() - before["modules"].keys() == {"efficient_vits"}
    ours = set(after["modules"]["efficient_vits"])
    assert {"hydra_s16", "tome_s16_r8", "vit_s16"} <= ours
    assert after["entry points"].keys() - before["entry points"].keys() == ours
    assert not ours & before["entry points"].keys()
    assert after["cfgs"].keys() - before["cfgs"].keys() == ours


def test_every_name_we_add_has_a_cfg(pictures):
    _, after, _ = pictures
    for name in after["modules"]["efficient_vits"]:
        assert "first_conv" in after["cfgs"][name]
        assert after["cfgs"][name] != "None"


def test_a_model_taken_over_from_timm_would_be_seen(pictures):
    before, _, taken_over = pictures
    changed = changes(before, taken_over)
    assert ("entry points", "vit_tiny_patch16_224") in changed
    assert ("cfgs", "vit_tiny_patch16_224") in changed
