"""Two CPU processes over gloo, forked from the test."""

import os
import socket
import warnings

import torch
from accelerate.state import AcceleratorState, GradientState, PartialState


def _free_port():
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return listener.getsockname()[1]


def in_two_processes(work, *args):
    """Fork two ranks that run `work(rank, *args)`; a failure of either is raised here."""

    def run(rank, port):
        place = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": 2, "MASTER_PORT": port}
        os.environ.update({name: str(value) for name, value in place.items()}, MASTER_ADDR="127.0.0.1")
        # What the parent's trainers set up belongs to one process.
        for state in (AcceleratorState, PartialState, GradientState):
            state._shared_state.clear()
        torch.set_num_threads(1)
        try:
            work(rank, *args)
        finally:
            if torch.distributed.is_initialized():
                torch.distributed.destroy_process_group()

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        torch.multiprocessing.start_processes(run, args=(_free_port(),), nprocs=2, start_method="fork")
