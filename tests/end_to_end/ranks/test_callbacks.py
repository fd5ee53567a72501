"""Pause, checkpoint and stop in the loops of Lightning, transformers and accelerate.

All ranks act at one and the same step, and go on from the checkpoint after a restart.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from waiting import steps_passed, wait_for

import icelaunch_nb as ice
from icelaunch_nb.worker import context

PATIENCE = 100  # seconds: importing a framework takes a rank some
pytestmark = pytest.mark.slow


def lightning(home: Path) -> dict[str, Any]:
    import lightning
    import torch

    from icelaunch_nb.callbacks.lightning import IceCallback

    class Model(lightning.LightningModule):
        def __init__(self) -> None:
            super().__init__()
            self.layer = torch.nn.Linear(4, 1)

        def training_step(self, batch, batch_idx):
            if (
                (home / "fail").exists()
                and self.global_rank == 1
                and ice.get_context().restart_count == 0
            ):
                raise RuntimeError("a bad batch")
            time.sleep(0.005)
            loss = self.layer(batch[0]).square().mean()
            self.log("train_loss", loss)
            # Lightning takes this metric as the x axis of a logger.
            self.log("step", float(self.global_step))
            return loss

        def configure_optimizers(self):
            return torch.optim.SGD(self.parameters(), lr=0.01)

    class Count(lightning.Callback):
        made, first = 0, -1

        def on_train_batch_start(self, trainer, *_):
            Count.first = trainer.global_step if Count.first < 0 else Count.first
            Count.made = trainer.global_step + 1

    loader = torch.utils.data.DataLoader(
        torch.utils.data.TensorDataset(torch.ones(80, 4)), batch_size=4
    )
    trainer = lightning.Trainer(
        max_epochs=10_000,
        min_steps=10_000,
        accelerator="cpu",
        devices=2,
        strategy="ddp",
        log_every_n_steps=1,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        default_root_dir=home,
        callbacks=[IceCallback(), Count()],
    )
    trainer.fit(Model(), loader, ckpt_path=ice.get_context().last_checkpoint)
    return {"first": Count.first, "made": Count.made}


def transformers(home: Path) -> dict[str, Any]:
    import torch
    from transformers import Trainer, TrainerCallback, TrainingArguments

    from icelaunch_nb.callbacks.transformers import IceCallback

    class Model(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = torch.nn.Linear(4, 1)

        def forward(self, x):
            if (
                (home / "fail").exists()
                and ice.get_context().rank == 1
                and ice.get_context().restart_count == 0
            ):
                raise RuntimeError("a bad batch")
            time.sleep(0.005)
            return {"loss": self.layer(x).square().mean()}

    class Count(TrainerCallback):
        made, first = 0, -1

        def on_step_begin(self, args, state, control, **_):
            Count.first = state.global_step if Count.first < 0 else Count.first
            Count.made = state.global_step + 1

    arguments = TrainingArguments(
        output_dir=str(home / "out"),
        max_steps=100_000,
        per_device_train_batch_size=4,
        use_cpu=True,
        logging_steps=1,
        save_strategy="no",
        report_to=[],
        disable_tqdm=True,
        dataloader_pin_memory=False,
    )
    rows = [{"x": torch.ones(4)} for _ in range(80)]
    trainer = Trainer(
        model=Model(), args=arguments, train_dataset=rows, callbacks=[IceCallback(), Count()]
    )
    trainer.train(resume_from_checkpoint=ice.get_context().last_checkpoint)
    return {"first": Count.first, "made": Count.made}


def accelerate(home: Path) -> dict[str, Any]:
    import torch
    from accelerate import Accelerator

    from icelaunch_nb.callbacks.accelerate import steps

    accelerator, context = Accelerator(cpu=True), ice.get_context()
    model = torch.nn.Linear(4, 1)
    made = torch.nn.Parameter(torch.zeros(1), requires_grad=False)  # saved with the model
    model.register_parameter("made", made)
    loader = torch.utils.data.DataLoader(
        torch.utils.data.TensorDataset(torch.ones(80, 4)), batch_size=4
    )
    model, optimizer, loader = accelerator.prepare(
        model, torch.optim.SGD(model.parameters(), lr=0.01), loader
    )
    if context.last_checkpoint:
        accelerator.load_state(context.last_checkpoint)
    first = int(made.item())
    for _ in context.steps(range(10_000)):
        for (x,) in steps(accelerator, loader, save_to=home / "states"):
            if (home / "fail").exists() and context.rank == 1 and context.restart_count == 0:
                raise RuntimeError("a bad batch")
            time.sleep(0.005)
            loss = model(x).square().mean()
            accelerator.backward(loss)
            optimizer.step()
            optimizer.zero_grad()
            made += 1
            context.report(loss=loss)
    return {"first": first, "made": int(made.item())}


def wait_for_steps(run: ice.Run, attempt: int) -> None:
    """Waits until each rank has passed five steps of this attempt."""
    wait_for(
        lambda: (
            run.state.over
            or (
                run.attempt == attempt
                and run._dir.steps(attempt).exists()
                and min(steps_passed(run, 2)) > 5
            )
        ),
        PATIENCE,
    )
    assert not run.state.over, run.failures


@pytest.mark.parametrize("job", [lightning, transformers, accelerate], ids=lambda job: job.__name__)
def test_requests_act_at_the_same_step_and_a_restart_resumes(
    job: Callable[[Path], dict[str, Any]], tmp_path: Path
) -> None:
    pytest.importorskip(job.__name__)
    run = ice.launch(by_value(job), (tmp_path,), nproc_per_node=2, devices="cpu", max_restarts=1)
    try:
        wait_for_steps(run, 0)
        run.pause()
        wait_for(run.events.paused.is_set, PATIENCE)
        assert len(set(steps_passed(run, 2))) == 1
        at = steps_passed(run, 2)
        run.save_checkpoint()
        run.resume()
        wait_for(run.events.finished_save_checkpoint.is_set, PATIENCE)
        assert run.last_checkpoint is not None and Path(run.last_checkpoint).exists()
        assert min(steps_passed(run, 2)) > at[0]
        (tmp_path / "fail").touch()
        wait_for_steps(run, 1)
        run.stop(grace=60)
        results = run.result(100)
        assert run.state == "STOPPED" and run.restarts == 1
        assert results[0] == results[1], "a rank stopped at another step"
        assert results[0]["first"] > 0, "the second attempt began anew"
        assert results[0]["made"] > results[0]["first"]
        rows = run.metrics()
        rows = rows.to_dict("records") if hasattr(rows, "to_dict") else rows
        assert {
            (row["attempt"], row["rank"])
            for row in rows
            if row.get("loss", row.get("train_loss")) is not None
        } >= {(0, 0), (1, 0)}
        assert run.events.progress_bar_iter.value > 0
        if job is lightning:
            assert any(row.get("logged_step", -1) > 0 for row in rows)
    finally:
        run.kill()


def alone(monkeypatch: pytest.MonkeyPatch, restart_count: int = 0) -> ice.Context:
    """This process as the only rank of a torchrun."""
    monkeypatch.setattr(context, "_current", {})
    variables = {
        "RANK": "0",
        "WORLD_SIZE": "1",
        "LOCAL_RANK": "0",
        "TORCHELASTIC_RESTART_COUNT": str(restart_count),
    }
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    return ice.get_context()


def test_a_checkpoint_that_a_trainer_does_not_save_stays_due_and_is_not_reported(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    pytest.importorskip("transformers")
    from icelaunch_nb.callbacks.transformers import IceCallback

    me, callback = alone(monkeypatch), IceCallback()
    args, state = (
        SimpleNamespace(output_dir=str(tmp_path)),
        SimpleNamespace(max_steps=10, global_step=0),
    )
    events = me.events

    def step() -> bool:
        state.global_step += 1
        control = SimpleNamespace(should_save=False)
        callback.on_step_end(args, state, control)
        return control.should_save

    callback.on_train_begin(args, state, SimpleNamespace())
    assert not step()
    events.trigger_save_checkpoint.set()
    assert [step() for _ in range(3)] == [True] * 3  # as where an evaluation refuses to save
    assert not events.finished_save_checkpoint.is_set()
    callback.on_save(args, state, SimpleNamespace())
    assert not step() and events.finished_save_checkpoint.is_set()
    assert me.last_checkpoint is None  # it is nowhere that this callback knows
    (tmp_path / f"checkpoint-{state.global_step}").mkdir()
    callback.on_save(args, state, SimpleNamespace())
    assert me.last_checkpoint == str(tmp_path / f"checkpoint-{state.global_step}")
    callback.on_train_end(args, state, SimpleNamespace())


@pytest.mark.parametrize(("restarts", "name"), [(0, "step_3"), (2, "step_3_attempt_2")])
def test_a_restarted_loop_overwrites_no_checkpoint_of_the_attempt_before(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, restarts: int, name: str
) -> None:
    pytest.importorskip("accelerate")
    from icelaunch_nb.callbacks.accelerate import steps

    me, saved = alone(monkeypatch, restarts), []
    accelerator = SimpleNamespace(save_state=saved.append, is_main_process=True)
    for number in steps(accelerator, range(6), save_to=tmp_path):
        if number == 2:
            me.events.trigger_save_checkpoint.set()
    assert saved == [str(tmp_path / name)]
    assert me.last_checkpoint == saved[0]


def test_a_trainer_that_logs_nothing_trains() -> None:
    pytest.importorskip("lightning")

    def bare() -> int:
        import lightning
        import torch

        from icelaunch_nb.callbacks.lightning import IceCallback

        class Model(lightning.LightningModule):
            def __init__(self) -> None:
                super().__init__()
                self.layer = torch.nn.Linear(4, 1)

            def training_step(self, batch, batch_idx):
                return self.layer(batch[0]).square().mean()

            def configure_optimizers(self):
                return torch.optim.SGD(self.parameters(), lr=0.01)

        loader = torch.utils.data.DataLoader(
            torch.utils.data.TensorDataset(torch.ones(8, 4)), batch_size=4
        )
        trainer = lightning.Trainer(
            max_steps=3, accelerator="cpu", barebones=True, callbacks=[IceCallback()]
        )
        trainer.fit(Model(), loader)
        return trainer.global_step

    assert ice.launch(by_value(bare), nproc_per_node=1, devices="cpu").result(PATIENCE) == {0: 3}


def by_value(job: Callable[..., Any]) -> Callable[..., Any]:
    """The function as one of a notebook, pickled by value: ranks can't import this module."""
    import types

    return types.FunctionType(
        job.__code__, {**job.__globals__, "__name__": "__main__"}, job.__name__
    )
