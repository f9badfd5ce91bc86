"""The pictures of a run are files, the same every time."""

from helpers.drawn import images, make_run

from kerasnorm import plots


def test_a_run_gets_its_pictures_the_same_each_time(tmp_path):
    run = make_run(path=str(tmp_path))
    names = ["accuracy", "loss", "learning_rate", "confusion", "misclassified"]
    paths = plots.draw_run(run, images())
    assert paths == [tmp_path / "plots" / f"{name}.png" for name in names]
    first = [path.read_bytes() for path in paths]
    assert [path.read_bytes() for path in plots.draw_run(run, images())] == first
    assert set((tmp_path / "plots").iterdir()) == set(paths)


def test_without_images_and_elsewhere(tmp_path):
    run = make_run("bn", path=str(tmp_path / "bn"))
    paths = plots.draw_run(run, folder=tmp_path / "new" / "one")
    names = ["accuracy.png", "loss.png", "learning_rate.png", "confusion.png"]
    assert paths == [tmp_path / "new" / "one" / name for name in names]
    assert not (tmp_path / "bn").exists()


def test_several_runs_are_overlaid(tmp_path):
    paths = plots.draw_runs([make_run("bn"), make_run("gn")], tmp_path / "both")
    assert [path.name for path in paths] == ["accuracy.png", "loss.png", "learning_rate.png"]
    assert all(path.is_file() for path in paths)
