"""MLflow: a run in the tracking store that the user chose, or in a database in the run's folder."""

import json
import sqlite3
import time
from collections.abc import Sequence
from contextlib import closing
from pathlib import Path
from typing import TYPE_CHECKING

from kerasnorm.config import Config, value_word
from kerasnorm.files import make_folder, read_text, write_json
from kerasnorm.training.run_folder import CONFIG, HISTORY, METRICS, MODEL, Row

if TYPE_CHECKING:
    from kerasnorm.training.loggers import EpochDetails
    from kerasnorm.training.run import Run

FOLDER = "mlflow"
RUN = "run.json"  # names the MLflow run, which a resumed run continues
DATABASE = "mlflow.db"
MOVE = (  # MLflow stores full paths, and has no call that changes them
    "UPDATE experiments SET artifact_location = replace(artifact_location, ?, ?)",
    "UPDATE runs SET artifact_uri = replace(artifact_uri, ?, ?)",
)
EXPERIMENT = "kerasnorm"  # unless MLFLOW_EXPERIMENT_NAME names another


class TrackedRun:
    """The MLflow run of one run; see `RunLog`."""

    def __init__(self, path: Path, config: Config) -> None:
        import mlflow

        folder = path.resolve() / FOLDER
        self.artifacts = (folder / "artifacts").as_uri()
        make_folder(folder)
        store = mlflow.get_tracking_uri() if mlflow.is_tracking_uri_set() else ""
        self.client = mlflow.MlflowClient(store or f"sqlite:///{(folder / DATABASE).as_posix()}")
        known = json.loads(read_text(folder / RUN)) if (folder / RUN).exists() else {}
        is_known = known.get("store") == store
        self.id: str = known["run"] if is_known else self._create(path, config, store)
        write_json(folder / RUN, {"store": store, "run": self.id})
        if not store:
            self._follow(folder / DATABASE)
        self.client.update_run(self.id, status="RUNNING")
        self.logged = {
            (name, metric.step)
            for name in self.client.get_run(self.id).data.metrics
            for metric in self.client.get_metric_history(self.id, name)
        }

    def _create(self, path: Path, config: Config, store: str) -> str:
        from mlflow.entities import Param
        from mlflow.environment_variables import MLFLOW_EXPERIMENT_NAME

        name = MLFLOW_EXPERIMENT_NAME.get() or EXPERIMENT
        found = self.client.get_experiment_by_name(name)
        place = None if store else self.artifacts
        experiment = found.experiment_id if found else self.client.create_experiment(name, place)
        run: str = self.client.create_run(experiment, run_name=path.resolve().name).info.run_id
        params = [Param(name, value_word(value)) for name, value in config.fields.items()]
        self.client.log_batch(run, params=params)
        return run

    def _follow(self, database: Path) -> None:
        """Tells the store in a run's folder where its artifacts are, if the folder was moved."""
        uri = self.client.get_run(self.id).info.artifact_uri
        before = uri.removesuffix(f"/{self.id}/artifacts")
        if before != self.artifacts:
            with closing(sqlite3.connect(database)) as connection, connection:
                for statement in MOVE:
                    connection.execute(statement, (before, self.artifacts))

    def write(self, rows: Sequence[Row], details: "EpochDetails | None" = None) -> None:
        """Logs the metrics of the epochs that are missing."""
        from mlflow.entities import Metric

        for step, row in enumerate(rows, 1):
            missing = {
                name: value
                for name, value in row.items()
                if name != "epoch" and value is not None and (name, step) not in self.logged
            }
            now = int(1000 * time.time())
            metrics = [Metric(name, value, now, step) for name, value in missing.items()]
            if metrics:
                self.client.log_batch(self.id, metrics)
                self.logged |= {(name, step) for name in missing}

    def stop(self, *, has_failed: bool) -> None:
        """Ends the MLflow run, which is running again when the run is resumed."""
        self.client.set_terminated(self.id, status="FAILED" if has_failed else "KILLED")

    def finish(self, run: "Run") -> None:
        """Logs the model, the files and the plots of the run, and ends it."""
        for name in (CONFIG, HISTORY, METRICS, MODEL):
            self.client.log_artifact(self.id, run.path / name)
        if run.plots_folder.is_dir():
            self.client.log_artifacts(self.id, run.plots_folder, run.plots_folder.name)
        self.client.set_terminated(self.id)
