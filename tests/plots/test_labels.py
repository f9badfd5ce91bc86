"""Labels tell runs apart in as few words as possible."""

import pytest
from helpers.drawn import make_run, written

from kerasnorm.plots.curves import loss_figure
from kerasnorm.plots.labels import run_labels


class TestLabels:
    def test_the_norm_is_enough_where_norms_differ(self):
        # The recipe differs in more than the norm here; the norm says it all.
        assert run_labels([make_run(n) for n in ("bn", "gn", "none")]) == [
            "BN",
            "GN",
            "no norm",
        ]

    def test_one_run(self):
        assert run_labels([make_run("ln")]) == ["LN"]
        assert run_labels([]) == []

    @pytest.mark.parametrize(
        ("field", "values", "expected"),
        [
            ("seed", (0, 1), ["GN, seed 0", "GN, seed 1"]),
            ("backend", ("torch", "tensorflow"), ["GN, torch", "GN, tensorflow"]),
            ("recipe", ("best", "era8"), ["GN, best", "GN, era8"]),
            ("data", ("shapes", "/some/where/pets"), ["GN, shapes", "GN, pets"]),
            ("batch_size", (8, 32), ["GN, batch size 8", "GN, batch size 32"]),
            ("learning_rate", (0.01, 0.003), ["GN, learning rate 0.01", "GN, learning rate 0.003"]),
            (
                "learning_rate",
                (0.01, 0.0100000001),
                ["GN, learning rate 0.01", "GN, learning rate 0.0100000001"],
            ),
            ("residual", (True, False), ["GN, residual", "GN, no residual"]),
        ],
    )
    def test_what_differs_is_named(self, field, values, expected):
        runs = [make_run(**{field: value}) for value in values]
        assert run_labels(runs) == expected

    def test_data_in_folders_of_one_name_are_told_apart(self):
        runs = [make_run(data=data) for data in ("/a/old/pets", "/a/new/pets", "shapes")]
        assert run_labels(runs) == ["GN, old/pets", "GN, new/pets", "GN, shapes"]

    def test_fields_are_combined(self):
        runs = [
            make_run(n, seed=s, batch_size=b) for n in ("bn", "gn") for s in (0, 1) for b in (2, 4)
        ]
        labels = run_labels(runs)
        assert labels[0] == "BN, seed 0, batch size 2"
        assert len(set(labels)) == 8

    def test_equal_configs_fall_back_to_the_folder(self):
        runs = [make_run(path="out/a"), make_run(path="out/_b")]
        assert run_labels(runs) == ["GN, a", "GN, _b"]
        runs = [make_run(path="one/a"), make_run(path="two/a")]
        assert run_labels(runs) == ["GN, one/a", "GN, two/a"]

    def test_a_folder_name_is_no_mathematics(self):
        written(loss_figure([make_run(path="$x$"), make_run(path=r"_$\broken$")]))
