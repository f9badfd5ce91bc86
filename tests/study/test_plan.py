"""A plan is the product of its values, without runs that would compute the same."""

from dataclasses import replace

import numpy as np
import pytest
from helpers.studies import make_run
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from kerasnorm.cli import studies
from kerasnorm.config import ARMS, RATE_SCALINGS, SETTINGS, field_value, resolve
from kerasnorm.errors import ConfigError, CorruptFileError
from kerasnorm.norms import NORMS
from kerasnorm.study import folder
from kerasnorm.study import plan as plans
from kerasnorm.study.plan import StudyPlan, identity, parse_vary, run_name
from kerasnorm.study.study import completed
from kerasnorm.study.summary import summarize


def make(**changes):
    values = {
        "norms": ("bn", "gn", "ln"),
        "backends": ("torch",),
        "seeds": (0, 1),
        "fixed": {"recipe": "era8", "data": "shapes"},
    }
    return StudyPlan(**values | changes)


def run_names(plan):
    return list(map(run_name, plan.configs().values(), plan.changes().values()))


def test_a_field_multiplies_only_the_norm_that_reads_it():
    plan = make(vary={"ln_affine": ("channel", "element"), "groups": (2, 4)})
    configs = list(plan.configs().values())
    kinds = [(c.model.norm, c.model.groups, c.model.ln_affine) for c in configs]
    assert len(configs) == 2 * (1 + 2 + 2)
    assert sorted(set(kinds)) == [
        ("bn", 0, "channel"),
        ("gn", 2, "channel"),
        ("gn", 4, "channel"),
        ("ln", 0, "channel"),
        ("ln", 0, "element"),
    ]


def test_a_plan_of_numpys_values_is_the_one_that_its_file_says(tmp_path):
    plan = make(
        margin=np.float32(0.5),
        one_at_a_time=np.bool_(True),
        vary={"batch_size": np.arange(8, 25, 8), "dropout": [0, 0.0, np.float64(0.5)],
              "residual": np.array([True, False]), "widths": np.full((1, 10), 8)},
        fixed={"epochs": np.int64(3), "image_size": [8, 8], "log": ["mlflow"], "learning_rate": 1},
    )  # fmt: skip
    like = make(
        margin=0.5,
        one_at_a_time=True,
        vary={"batch_size": (8, 16, 24), "dropout": (0.0, 0.5), "residual": (True, False),
              "widths": ((8,) * 10,)},
        fixed={"epochs": 3, "image_size": (8, 8), "log": ("mlflow",), "learning_rate": 1.0},
    )  # fmt: skip
    assert repr(plan) == repr(like)
    (tmp_path / "study.toml").write_text(plans.to_toml(plan))
    assert repr(plans.read(tmp_path)) == repr(like)
    assert folder.default(plan) == folder.default(like)


def test_other_fields_multiply_all():
    assert len(make(vary={"batch_size": (8, 16, 32)}).configs()) == 3 * 3 * 2


def test_identity_knows_what_a_run_computes():
    base = {"norm": "bn", "data": "shapes", "backend": "torch"}
    plain = identity(resolve(base))
    for same in (
        {"device": "cpu"},
        {"log": "mlflow"},
        {"ln_affine": "element"},
        {"groups": 2},
        {"group_size": 8},
    ):
        assert identity(resolve(base | same)) == plain
    for other in ({"bn_momentum": 0.8}, {"seed": 1}, {"norm": "gn"}, {"backend": "tensorflow"}):
        assert identity(resolve(base | other)) != plain
    grouped = {"norm": "gn", "groups": 4}
    assert identity(resolve(grouped)) == identity(resolve(grouped | {"group_size": 8}))


def test_matched_arms_differ_in_the_norm_alone():
    configs = make(fixed={"data": "shapes"}, seeds=(0,)).configs().values()
    for field in set(SETTINGS) - {"norm", "groups"}:  # era8 and best give gn two groups
        values = {repr(field_value(config, field)) for config in configs}
        assert len(values) == 1, field
    given_by_hand = make(fixed={"data": "shapes", "weight_standardization": True}, seeds=(0,))
    assert all(c.model.weight_standardization for c in given_by_hand.configs().values())


def test_tuned_arms_have_the_recipes_own_values():
    configs = make(fixed={"data": "shapes"}, arms="tuned").configs().values()
    assert {c.model.norm: c.model.weight_standardization for c in configs} == {
        "bn": False,
        "gn": True,
        "ln": True,
    }


@pytest.mark.parametrize(
    ("scaling", "rates"),
    [
        ("none", {16: 0.01, 64: 0.01, 256: 0.01}),
        ("linear", {16: 0.0025, 64: 0.01, 256: 0.04}),
        ("sqrt", {16: 0.005, 64: 0.01, 256: 0.02}),
    ],
)
def test_the_rate_follows_the_batch_size(scaling, rates):
    plan = make(vary={"batch_size": (16, 64, 256)}, rate_scaling=scaling)  # era8: 0.01 at 64
    found = {c.train.batch_size: c.train.learning_rate for c in plan.configs().values()}
    assert found == rates


ABLATION = {
    "fixed": {"recipe": "era8", "data": "shapes", "batch_size": 64, "optimizer": "adamw"},
    "vary": {"optimizer": ("adamw", "sgd", "adam"), "batch_size": (32, 64), "groups": (2,)},
    "seeds": (0,),
    "one_at_a_time": True,
}


def test_one_at_a_time_is_the_base_and_single_changes():
    plan = make(norms=("bn", "gn"), **ABLATION)
    kinds = [(c.model.norm, c.train.optimizer, c.train.batch_size, c.model.groups)
             for c in plan.configs().values()]  # fmt: skip
    assert kinds == [
        ("bn", "adamw", 64, 0),
        ("gn", "adamw", 64, 0),
        ("bn", "sgd", 64, 0),
        ("gn", "sgd", 64, 0),
        ("bn", "adam", 64, 0),
        ("gn", "adam", 64, 0),
        ("bn", "adamw", 32, 0),
        ("gn", "adamw", 32, 0),
        ("gn", "adamw", 64, 2),
    ]
    assert list(plan.changes().values())[::2] == [
        {},
        {"optimizer": "sgd"},
        {"optimizer": "adam"},
        {"batch_size": 32},
        {"groups": 2},
    ]
    assert list(plan.changes()) == list(plan.configs())
    names = run_names(plan)
    assert names[:4] == [
        "bn-torch-s0",
        "gn-torch-s0",
        "bn-torch-optimizer-sgd-s0",
        "gn-torch-optimizer-sgd-s0",
    ]
    assert names[-1] == "gn-torch-groups-2-s0"


def test_each_norm_has_a_base_of_its_own():
    plan = make(
        norms=("bn", "gn"),
        seeds=(0,),
        fixed={"recipe": "best", "data": "shapes"},
        vary={"weight_standardization": (True, False)},
        arms="tuned",
        one_at_a_time=True,
    )
    bases = {norm: resolve({"norm": norm}).model.weight_standardization for norm in plan.norms}
    assert run_names(plan) == [
        "bn-torch-s0",
        "gn-torch-s0",
        *(f"{norm}-torch-weight_standardization-{value}-s0"
          for value in (True, False) for norm in plan.norms if bases[norm] != value),
    ]  # fmt: skip


def test_the_rate_of_a_batch_size_is_scaled_from_that_of_the_other_varied_fields():
    """era8: adam, 0.01 at 64; plain: sgd, 0.1 at 128."""
    vary = {"recipe": ("era8", "plain"), "batch_size": (64, 256)}
    plan = StudyPlan(
        norms=("bn",), backends=("torch",), seeds=(0,), vary=vary, fixed={"data": "shapes"}
    )
    found = [(c.recipe, c.train.batch_size, c.train.learning_rate) for c in plan.configs().values()]
    assert found == [
        ("era8", 64, 0.01),
        ("era8", 256, 0.02),
        ("plain", 64, 0.05),
        ("plain", 256, 0.2),
    ]
    vary = {"network": ("builtin", "keras:MobileNetV2"), "batch_size": (128,)}
    plan = StudyPlan(
        norms=("bn",), backends=("torch",), seeds=(0,), vary=vary, fixed={"data": "shapes"}
    )
    rates = [c.train.learning_rate for c in plan.configs().values()]
    assert rates == [resolve({"norm": "bn"}).train.learning_rate * 2**0.5, 0.1]


def test_one_at_a_time_scales_the_rate_of_a_batch_size_alone():
    plan = make(norms=("gn",), rate_scaling="linear", **ABLATION)
    rates = {repr(change): config.train.learning_rate for change, config in
             zip(plan.changes().values(), plan.configs().values(), strict=True)}  # fmt: skip
    assert rates["{}"] == rates["{'optimizer': 'sgd'}"] == 0.01
    assert rates["{'batch_size': 32}"] == 0.005


def test_only_a_study_without_varied_fields_becomes_one_at_a_time():
    one_at_a_time = make(**ABLATION)
    plain = make(**ABLATION | {"one_at_a_time": False})
    assert one_at_a_time.conflict(plain) == plain.conflict(one_at_a_time) == "one_at_a_time"
    assert one_at_a_time.conflict(make(**ABLATION | {"one_at_a_time": False, "vary": {}})) == ""
    assert one_at_a_time.conflict(make(**ABLATION | {"vary": {"dropout": (0.1,)}})) == ""


def test_a_log_makes_no_other_study():
    plain = make()
    logged = make(fixed=plain.fixed | {"log": ("mlflow",)})
    assert plain.conflict(logged) == logged.conflict(plain) == ""
    assert {*plain.configs()} == {*logged.configs()}


def test_vary_takes_any_field():
    found = parse_vary(["batch-size=2,4,4", "widths=1,2;3,4", "residual=true,false", "recipe=best"])
    assert found == {
        "batch_size": (2, 4),
        "widths": ((1, 2), (3, 4)),
        "residual": (True, False),
        "recipe": ("best",),
    }


@pytest.mark.parametrize(
    ("text", "named"),
    [
        ("batch_size", "FIELD=VALUE"),
        ("batch_size=", "FIELD=VALUE"),
        ("batch_sise=2", "batch_size"),
        ("batch_size=2,x", "batch_size='x'"),
        ("residual=maybe", "residual"),
        ("norm=bn", "--norm"),
        ("seed=1", "--seeds"),
        ("recipe=nope", "best"),
        ("log=mlflow", "changes nothing that a run computes: --log"),
        ("devices=1,2", "changes nothing that a run computes: --devices"),
    ],
)
def test_a_bad_vary_is_refused(text, named):
    with pytest.raises(ConfigError, match=named):
        parse_vary([text])
    with pytest.raises(ConfigError, match="twice"):
        parse_vary(["epochs=1", "epochs=2"])


# A varied field, values of others under which no run reads it, and some under which one does.
UNREAD = [
    ({"groups": (2, 4)}, {"norms": ("bn", "ln")}, {"norms": ("bn", "gn")}),
    ({"ln_affine": ("channel", "element")}, {"norms": ("bn",)}, {}),
    ({"bn_sync": ("on", "off")}, {}, {"fixed": {"devices": 2}}),
    (
        {"order": ("conv-norm-act", "conv-act-norm")},
        {"norms": ("none",)},
        {"norms": ("none", "in")},
    ),
    ({"norm_transitions": (True, False)}, {"norms": ("none",)}, {}),
    ({"dropout_kind": ("element", "spatial")}, {"fixed": {"dropout": 0.0}}, {}),
    ({"cutout_size": (4, 8)}, {"fixed": {"cutout": 0.0}}, {}),
    ({"momentum": (0.8, 0.9)}, {}, {"fixed": {"optimizer": "sgd"}}),
    ({"warmup": (0.1, 0.2)}, {"fixed": {"schedule": "constant"}}, {}),
    ({"engine": ("native", "keras")}, {"backends": ("jax",)}, {"backends": ("jax", "torch")}),
    ({"fused": (True, False)}, {"fixed": {"engine": "keras"}}, {}),
    ({"fused": (True, False)}, {"backends": ("jax",)}, {}),
]


@pytest.mark.parametrize("one_at_a_time", [False, True])
@pytest.mark.parametrize(("vary", "without", "beside"), UNREAD)
def test_a_field_that_no_run_reads_is_not_varied(vary, without, beside, one_at_a_time):
    (name,) = vary
    base = make(vary=vary, one_at_a_time=one_at_a_time)
    with pytest.raises(ConfigError, match=f"vary={name}, which is read only with "):
        with_fields(base, **without).check_read()
    with_fields(base, **beside).check_read()


@pytest.mark.parametrize("devices", [1, 2])
@pytest.mark.parametrize(
    "network", [{"norm": "bn"}, {"norm": "keep", "network": "keras:MobileNetV2", "recipe": "plain"}]
)
def test_runs_of_several_processes_that_differ_in_bn_sync_are_two(network, devices):
    """Under torchrun `devices` stays 1."""
    runs = [make_run(0.5 + seed**2 / 50, seed=seed, bn_sync=sync, devices=devices, **network)
            for sync in ("on", "off") for seed in range(3)]  # fmt: skip
    assert len({identity(run.config) for run in runs}) == 6
    found = summarize(runs)
    assert [dict(group.fields) for group in found.groups] == [{"bn_sync": "on"}, {"bn_sync": "off"}]
    others = [make_run(0.5, norm="gn", bn_sync=sync, devices=devices) for sync in ("on", "off")]
    assert len({identity(run.config) for run in others}) == 1


@pytest.mark.parametrize("one_at_a_time", [False, True])
@pytest.mark.parametrize("vary", [{"epochs": (1, 2)}, {"groups": (2, 4)}, {"momentum": (0.8, 0.9)}])
def test_a_plan_resolves_a_config_again_only_without_what_it_does_not_read(
    vary, one_at_a_time, monkeypatch
):
    plan = make(vary=vary, one_at_a_time=one_at_a_time, fixed={"optimizer": "sgd"})
    plan = replace(plan, norms=("bn", "gn"))
    found = []
    resolved = StudyPlan._resolved
    monkeypatch.setattr(StudyPlan, "_resolved", lambda *args: found.append(1) or resolved(*args))
    combinations = 2 + one_at_a_time
    plan.configs()
    assert len(found) == combinations * len(plan.norms) * len(plan.backends) * len(plan.seeds)


# Fields of which one is read only beside values of the other, and the number of distinct runs.
PARTLY_READ = [
    ({"cutout": (0.0, 0.5), "cutout_size": (8, 16)}, 3),
    ({"cutout_size": (8, 16), "cutout": (0.0, 0.5)}, 3),
    ({"dropout": (0.0, 0.1, 0.2), "dropout_kind": ("element", "spatial")}, 5),
    ({"optimizer": ("sgd", "adamw", "muon"), "momentum": (0.8, 0.9)}, 5),
    ({"schedule": ("constant", "cosine"), "warmup": (0.1, 0.2)}, 3),
    ({"engine": ("native", "keras"), "fused": (True, False)}, 3),
    ({"groups": (0, 2, 4), "group_size": (2, 8)}, 4),
]


@pytest.mark.parametrize(("vary", "count"), PARTLY_READ)
def test_no_two_runs_of_all_combinations_compute_the_same(vary, count):
    plan = make(norms=("gn",), seeds=(0,), backends=("torch",), vary=vary, fixed={"data": "shapes"})
    assert len(plan.configs()) == count
    shown = [repr(sorted(chosen.items())) for chosen in plan.changes().values()]
    assert len({*shown}) == count  # and their names and labels differ


def with_fields(plan, fixed=None, **changes):
    return replace(plan, fixed={**plan.fixed, **(fixed or {})}, **changes)


def test_all_combinations_may_read_what_the_base_of_an_ablation_does_not():
    vary = {"dropout": (0.0, 0.1), "dropout_kind": ("spatial",)}
    make(vary=vary, fixed={"dropout": 0.2}).check_read()
    with pytest.raises(ConfigError, match="vary=dropout_kind"):
        make(vary=vary, fixed={"recipe": "best"}, one_at_a_time=True).check_read()
    make(vary={"group_size": (2, 8)}, fixed={"recipe": "best"}, arms="tuned",
         one_at_a_time=True).check_read()  # fmt: skip
    with pytest.raises(ConfigError, match="vary=group_size"):
        make(vary={"group_size": (2, 8)}, fixed={"groups": 2}).check_read()


def test_the_command_refuses_a_field_that_no_run_reads():
    words = ["--data", "shapes", "--recipe", "era8", "--vary", "momentum=0.8,0.9"]
    with pytest.raises(ConfigError, match="only with optimizer=sgd or muon"):
        studies._plan(studies.compare.make_context("compare", words).params)


NUMBERS = st.lists(st.integers(1, 500), min_size=1, max_size=3, unique=True).map(tuple)


@settings(deadline=None, max_examples=20)
@given(
    batch=NUMBERS,
    seeds=NUMBERS,
    arms=st.sampled_from(ARMS),
    scaling=st.sampled_from(RATE_SCALINGS),
    one_at_a_time=st.booleans(),
)
def test_study_toml_gives_the_same_plan(
    tmp_path_factory, batch, seeds, arms, scaling, one_at_a_time
):
    path = tmp_path_factory.mktemp("plan") / plans.STUDY
    fixed = {"recipe": "era8", "data": "shapes", "widths": (4,) * 10, "residual": True}
    plan = make(
        seeds=seeds,
        vary={"batch_size": batch},
        fixed=fixed,
        arms=arms,
        rate_scaling=scaling,
        margin=1.5,
        one_at_a_time=one_at_a_time,
    )
    path.write_text(plans.to_toml(plan))
    assert ("one_at_a_time" in path.read_text()) == one_at_a_time  # an older file has no such line
    assert plans.read(path.parent) == plan


@pytest.mark.parametrize("one_at_a_time", [False, True])
def test_the_command_of_a_plan_parses_to_the_same_plan(one_at_a_time):
    fixed = {"train_size": 50, "data": "shapes", "residual": False}
    vary = {"widths": ((4,) * 10, (8,) * 10), "dropout": (0.0, 0.5), "batch_size": (8, 16)}
    fixed |= {"recipe": "era8", "log": ("tensorboard", "mlflow")}
    plan = make(
        fixed=fixed,
        vary=vary,
        arms="tuned",
        rate_scaling="linear",
        margin=0.12345678,
        seeds=(3, 4),
        one_at_a_time=one_at_a_time,
    )
    words = plans.command(plan, "out")
    assert words[:2] == ["kerasnorm", "compare"]
    context = studies.compare.make_context("compare", words[2:])
    assert studies._plan(context.params) == plan


def test_a_damaged_study_is_refused(tmp_path):
    with pytest.raises(CorruptFileError, match="not the folder of a study"):
        plans.read(tmp_path)
    for text in ("norms = ", "norms = ['bn']", "norms=['zz']\nbackends=['torch']\nseeds=[0]\n"):
        (tmp_path / plans.STUDY).write_text(text)
        with pytest.raises(CorruptFileError, match="damaged"):
            plans.read(tmp_path)


def test_a_study_of_an_earlier_version_is_read(tmp_path):
    """Its fields have earlier names, and it says nothing of what came later."""
    (tmp_path / plans.STUDY).write_text(
        "norms = ['bn']\nbackends = ['torch']\nseeds = [0]\n"
        "[fixed]\ndata = 'shapes'\nwidths = [4, 4, 4, 4, 4, 4, 4, 4, 4, 4]\n"
        "[vary]\ntreatment = ['scale', 'standardize']\n"
    )
    plan = plans.read(tmp_path)
    assert plan.fixed == {"data": "shapes", "widths": (4,) * 10}
    assert plan.vary == {"preprocessing": ("scale", "standardize")}
    assert (plan.arms, plan.rate_scaling) == ("tuned", "none")
    assert not plan.one_at_a_time


def test_a_linear_rate_of_an_earlier_version_is_read(tmp_path):
    (tmp_path / plans.STUDY).write_text(
        "norms = ['bn']\nbackends = ['torch']\nseeds = [0]\nlinear_rate = true\n"
        "[fixed]\ndata = 'shapes'\n[vary]\nbatch_size = [8, 16]\n"
    )
    assert plans.read(tmp_path).rate_scaling == "linear"


def test_the_rate_scaling_by_default_depends_on_the_optimizer(caplog):
    words = ["--data", "shapes", "--recipe", "era8", "--vary", "batch_size=64,256"]
    for more, rate in (([], 0.02), (["--optimizer", "sgd"], 0.04)):  # era8: 0.01 at 64
        context = studies.compare.make_context("compare", [*words, *more])
        plan = studies._plan(context.params)
        assert {c.train.learning_rate for c in plan.configs().values()} == {0.01, rate}
    assert "The peak learning rate follows the batch size" in caplog.text
    caplog.clear()
    context = studies.compare.make_context("compare", [*words, "--rate-scaling", "none"])
    studies._plan(context.params)
    assert not caplog.text


@pytest.mark.parametrize("has_test", [False, True])
def test_norms_are_not_chosen_on_a_test_set_that_was_set_aside_here(tmp_path, has_test):
    for name in ("train", "test") if has_test else ("",):
        for kind in ("cat", "dog"):
            home = tmp_path / "d" / name / kind
            home.mkdir(parents=True)
            for number in range(10):
                Image.new("RGB", (8, 8), (number, 0, 0)).save(home / f"{number}.png")
    words = ["--data", str(tmp_path / "d"), "--backend", "torch"]
    plan = studies._plan(studies.compare.make_context("compare", words).params)
    assert plan.fixed.get("validation") == (None if has_test else 4)  # a fifth of 20, as the test
    words += ["--validation", "2"]
    plan = studies._plan(studies.compare.make_context("compare", words).params)
    assert plan.fixed["validation"] == 2


def test_folders_are_named_after_what_tells_runs_apart():
    plan = make(vary={"batch_size": (8,), "groups": (2,)})
    names = run_names(plan)
    assert names[0] == "bn-torch-batch_size-8-s0"
    assert names[2] == "gn-torch-batch_size-8-groups-2-s0"


def test_every_owned_field_is_a_field():
    owned = {name for norm in NORMS.values() for name in norm.fields}
    assert {"groups", "ln_affine"} <= owned <= set(SETTINGS)


def test_the_default_folder_is_one_for_a_place_and_can_be_made(tmp_path, monkeypatch):
    (tmp_path / "d").mkdir()
    (tmp_path / "link").symlink_to("d")
    monkeypatch.chdir(tmp_path)
    spelled = ("d", "d/", "./d", "link", str(tmp_path / "d"))
    located = [make(fixed={"data": text}).located() for text in spelled]
    assert len({folder.default(plan) for plan in located}) == 1
    assert {identity(resolve({"data": text})) for text in spelled} == {
        identity(resolve({"data": str(tmp_path / "d")}))
    }
    long = make(vary=dict.fromkeys(SETTINGS, ()))
    longer = make(vary={name: () for name in SETTINGS if name != "flip"})
    names = {folder.default(plan).name for plan in (long, longer)}
    assert len(names) == 2
    assert max(map(len, names)) < 143


def test_the_validation_split_that_is_held_out_unasked_leaves_most_of_the_training_images(tmp_path):
    rng = np.random.default_rng(0)
    for label in "ab":
        (tmp_path / label).mkdir()
        for number in range(100):
            pixels = rng.integers(0, 256, (8, 8, 3), np.uint8)
            Image.fromarray(pixels).save(tmp_path / label / f"{number:03}.png")
    for size, held_out in ((0, 40), (50, 10)):
        fixed = {"data": str(tmp_path)} | ({"train_size": size} if size else {})
        plan = StudyPlan(norms=("bn",), backends=("torch",), seeds=(0,), fixed=fixed)
        assert completed(plan).fixed["validation"] == held_out
    plan = StudyPlan(
        norms=("bn",),
        backends=("torch",),
        seeds=(0,),
        vary={"train_size": (100, 50)},
        fixed={"data": str(tmp_path)},
    )
    assert completed(plan).fixed["validation"] == 10
