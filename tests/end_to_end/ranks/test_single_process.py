"""What a framework made for a single process is warned of on several ranks.

Launchers of the framework's own are refused.
"""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import jobs
import pytest

import icelaunch_nb as ice

pytestmark = pytest.mark.slow  # importing a framework takes seconds


def warnings_of(*args: Any, ranks: int = 2) -> list[str]:
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always", ice.SingleProcessWarning)
        run = ice.launch(lambda *args: None, args, nproc_per_node=ranks, devices="cpu")
    run.result(60)
    found = [warning for warning in caught if warning.category is ice.SingleProcessWarning]
    assert all(warning.filename == __file__ for warning in found), "the line that launches is named"
    return [str(warning.message) for warning in found]


def test_an_accelerator_of_the_launching_process_is_named(runs: Path) -> None:
    accelerate = pytest.importorskip("accelerate")
    accelerator = accelerate.Accelerator(cpu=True)
    (message,) = warnings_of(1, {"it": accelerator})
    assert message.startswith(
        "`args[1]` (AcceleratorState) was made in this process, where the world size is 1"
    )
    assert "each of the 2 ranks would train by itself" in message
    assert warnings_of(accelerator, ranks=1) == []


def test_training_arguments_of_a_cell_are_named(runs: Path) -> None:
    transformers = pytest.importorskip("transformers")

    class Mine(transformers.TrainingArguments):
        pass

    arguments = Mine(output_dir=str(runs), use_cpu=True, report_to=[])

    def train() -> int:
        return arguments.world_size

    with pytest.warns(
        ice.SingleProcessWarning, match=r"^`arguments` \(Mine\) was made in this process"
    ):
        run = ice.launch(train, nproc_per_node=2, devices="cpu")
    assert run.result(100) == {0: 1, 1: 1}, "which is why there is a warning"


def test_a_lightning_trainer_of_a_cell_is_named_and_nothing_else_is(runs: Path) -> None:
    lightning = pytest.importorskip("lightning")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        trainer = lightning.Trainer(
            accelerator="cpu",
            devices=1,
            logger=False,
            enable_checkpointing=False,
            enable_progress_bar=False,
        )
    (message,) = warnings_of(trainer)
    assert message.startswith("`args[0]` (Trainer) was made")
    assert warnings_of(jobs.all_reduce, [1, 2]) == []


def fit(strategy: str, **keywords: Any) -> None:
    import lightning
    import torch

    class Model(lightning.LightningModule):
        def __init__(self) -> None:
            super().__init__()
            self.layer = torch.nn.Linear(4, 1)

        def training_step(self, batch, _):
            return self.layer(batch[0]).sum()

        def configure_optimizers(self):
            return torch.optim.SGD(self.parameters(), lr=0.1)

    trainer = lightning.Trainer(
        max_steps=1,
        accelerator="cpu",
        devices=2,
        strategy=strategy,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        **keywords,
    )
    trainer.fit(
        Model(), torch.utils.data.DataLoader(torch.utils.data.TensorDataset(torch.ones(4, 4)))
    )


def test_a_strategy_of_notebooks_left_in_is_refused_by_a_clear_error(runs: Path) -> None:
    pytest.importorskip("lightning")

    def each() -> list[str]:
        errors = []
        for strategy in ("ddp_notebook", "ddp_spawn", "ddp_notebook_find_unused_parameters_true"):
            try:
                fit(strategy)
            except ice.IcelaunchError as error:
                errors.append(str(error))
        return errors

    found = ice.launch(each, nproc_per_node=2, devices="cpu").result(100)
    assert found[0] == found[1]
    assert ['"ddp_notebook" or' in text for text in found[0]] == [True, False, True]
    assert all(
        "starts processes of its own" in text and 'set strategy="ddp"' in text for text in found[0]
    )


def add(index: int, total: Any) -> None:
    total.value += index


def test_processes_that_a_function_starts_by_torch_are_started(runs: Path) -> None:
    def starts() -> int:
        import torch.multiprocessing as mp

        total = mp.get_context("fork").Value("i", 0)
        mp.start_processes(add, args=(total,), nprocs=2, start_method="fork")
        return total.value

    assert ice.launch(starts, nproc_per_node=1, devices="cpu").result(60) == {0: 1}
