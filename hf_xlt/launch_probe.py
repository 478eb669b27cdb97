"""What `hf-xlt doctor --try-launch` starts: adds one number over all processes of a launch, and prints the sum."""

from __future__ import annotations


def main() -> None:
    """Print, from the first process, how many processes took part in an exchange."""
    import torch
    from accelerate import Accelerator

    accelerator = Accelerator(cpu=not torch.cuda.is_available())
    count = accelerator.reduce(torch.ones(1, device=accelerator.device), reduction="sum")
    if accelerator.is_main_process:
        print(int(count.item()))  # noqa: T201
    accelerator.end_training()


if __name__ == "__main__":
    main()
