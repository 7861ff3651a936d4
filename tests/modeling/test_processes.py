"""Two processes with half the batch each: the losses and gradients of one process with the whole batch."""

import torch
import torch.distributed as dist
import torch.multiprocessing as mp

from tcl_d2.checkpoint import from_official
from tests import golden


def work(rank: int, folder: str) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/meet", rank=rank, world_size=2)
    half = slice(2 * rank, 2 * rank + 2)
    noise = golden.load()["train"]["stage2"]["uniform"].diagonal().permute(2, 0, 1)[:, None]
    model = golden.build_model(train_last_blocks=True).train()
    losses = model.compute_losses(golden.load()["image"].float()[half], golden.load()["tokens"][half], noise[half])
    sum(losses.values()).backward()
    gradients = {name: p.grad for name, p in model.named_parameters() if p.grad is not None}
    for gradient in gradients.values():  # as DistributedDataParallel does
        dist.all_reduce(gradient)
        gradient /= 2
    if rank == 0:
        torch.save({"losses": {k: v.detach() for k, v in losses.items()}, "gradients": gradients}, f"{folder}/0.pth")
    dist.destroy_process_group()


def test_two_processes_equal_one(tmp_path):
    mp.spawn(work, args=(str(tmp_path),), nprocs=2)
    ours = torch.load(tmp_path / "0.pth", weights_only=True)
    figures = golden.load()["train"]["stage2"]
    for official, name in golden.LOSS_NAMES.items():
        if not name.startswith("loss_tv"):  # means over equal halves: each process has its own half's
            torch.testing.assert_close(ours["losses"][name], figures["losses"][official], rtol=1e-5, atol=0)
    for name, gradient in from_official(figures["grads"]).items():
        assert (ours["gradients"][name] - gradient).norm() / gradient.norm() < 1e-4, name
