"""The contenders: how each of them is loaded, and how it runs a function on several ranks."""

from __future__ import annotations

import importlib.metadata
import importlib.util
import os
import socket
import uuid
from collections.abc import Callable
from typing import Any, ClassVar


class Launcher:
    """One way to run a notebook's function on ranks.

    Attributes:
        name: What the table calls it.
        package: The package that has to be installed.
        cold: Whether every launch starts new interpreters. Then nothing warms up, and few
            repetitions suffice.
    """

    name: ClassVar[str]
    package: ClassVar[str]
    cold: ClassVar[bool] = False

    @classmethod
    def version(cls) -> str | None:
        """Returns the installed version, or None if the package is missing."""
        if importlib.util.find_spec(cls.package) is None:
            return None
        try:
            return importlib.metadata.version(cls.package)
        except importlib.metadata.PackageNotFoundError:
            return "from this folder"

    def load(self) -> None:
        """Does what a user does once per kernel."""
        raise NotImplementedError

    def launch(
        self,
        fn: Callable[..., Any],
        args: tuple[Any, ...],
        *,
        ranks: int,
        folder: str,
        restarts: int,
        shown: bool,
    ) -> Any:
        """Runs `fn` on `ranks` ranks, waits, and returns or raises what the contender does.

        Args:
            fn: The function.
            args: Its arguments.
            ranks: How many ranks.
            folder: Where the contenders that keep logs write them.
            restarts: How often the ranks may be restarted.
            shown: Whether what ranks print has to reach the caller's stdout.
        """
        raise NotImplementedError


class Icelaunch(Launcher):
    """This package: `launch_agent` with ``tee`` where output is shown, otherwise `launch`."""

    name = "icelaunch_nb"
    package = "icelaunch_nb"

    def load(self) -> None:
        import icelaunch_nb
        from icelaunch_nb.client.host_pool import hosts

        hosts.for_environ(os.environ)  # what %load_ext does, the magics aside
        self._ice = icelaunch_nb

    def launch(
        self,
        fn: Callable[..., Any],
        args: tuple[Any, ...],
        *,
        ranks: int,
        folder: str,
        restarts: int,
        shown: bool,
    ) -> Any:
        if shown:
            config = self._ice.LaunchConfig(
                1,
                1,
                ranks,
                rdzv_backend="c10d",
                start_method="forkserver",
                max_restarts=restarts,
                log_dir=folder,
                tee=3,
            )
            return self._ice.launch_agent(config, fn, args)
        return self._ice.launch(
            fn, args, nproc_per_node=ranks, devices="cpu", max_restarts=restarts, log_dir=folder
        ).result()


class Accelerate(Launcher):
    """``accelerate.notebook_launcher``, which forks this process.

    It returns nothing, and always shows what ranks print.
    """

    name = "accelerate"
    package = "accelerate"

    def load(self) -> None:
        import accelerate

        self._launch = accelerate.notebook_launcher

    def launch(
        self,
        fn: Callable[..., Any],
        args: tuple[Any, ...],
        *,
        ranks: int,
        folder: str,
        restarts: int,
        shown: bool,
    ) -> Any:
        # Its default port, 29500, may be in use; choosing a free one costs it nothing.
        return self._launch(
            fn, args, num_processes=ranks, max_restarts=restarts, use_port=str(_free_port())
        )


class Elastic(Launcher):
    """torch's own ``elastic_launch``, as it works in a notebook.

    It forks, because a cell's functions can't be pickled, and uses c10d on localhost.
    """

    name = "torch elastic"
    package = "torch"

    def load(self) -> None:
        from torch.distributed.elastic.multiprocessing import DefaultLogsSpecs, Std
        from torch.distributed.launcher.api import LaunchConfig, elastic_launch

        self._logs_specs, self._std, self._config, self._launch = (
            DefaultLogsSpecs,
            Std,
            LaunchConfig,
            elastic_launch,
        )

    def launch(
        self,
        fn: Callable[..., Any],
        args: tuple[Any, ...],
        *,
        ranks: int,
        folder: str,
        restarts: int,
        shown: bool,
    ) -> Any:
        config = self._config(
            min_nodes=1,
            max_nodes=1,
            nproc_per_node=ranks,
            run_id=uuid.uuid4().hex,
            start_method="fork",
            max_restarts=restarts,
            rdzv_backend="c10d",
            rdzv_endpoint="localhost:0",
            logs_specs=self._logs_specs(
                log_dir=folder, tee=self._std.ALL if shown else self._std.NONE
            ),
        )
        return self._launch(config, fn)(*args)


class Torchrunx(Launcher):
    """torchrunx on localhost, without restarts.

    Its agent and each of its ranks start a new interpreter.
    """

    name = "torchrunx"
    package = "torchrunx"
    cold = True

    def load(self) -> None:
        import torchrunx

        self._launcher = torchrunx.Launcher

    def launch(
        self,
        fn: Callable[..., Any],
        args: tuple[Any, ...],
        *,
        ranks: int,
        folder: str,
        restarts: int,
        shown: bool,
    ) -> Any:
        os.environ["TORCHRUNX_LOG_DIR"] = folder
        # backend=None, because the others don't make a process group before the first line either.
        # With torchrunx's own gloo group, when a rank raised while another waited in a barrier, the
        # caller had no exception after two minutes. With backend=None, it has one when the barrier
        # times out.
        return (
            self._launcher(hostnames=["localhost"], workers_per_host=ranks, backend=None)
            .run(fn, *args)
            .results
        )


LAUNCHERS: dict[str, type[Launcher]] = {
    launcher.name: launcher for launcher in (Icelaunch, Accelerate, Elastic, Torchrunx)
}


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]
