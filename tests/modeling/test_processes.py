"""Several processes with a part of the batch each: losses and gradients of one process with the whole batch."""

from types import SimpleNamespace

import pytest
import torch
import torch.distributed as dist
from detectron2.utils import comm

from tcl_d2.checkpoint import from_official
from tcl_d2.engine.hooks import UnfreezeHook
from tcl_d2.runs.processes import unwrap_ddp, wrap_ddp
from tests import golden
from tests.running import start_processes


def work(rank: int, size: int, folder: str, backend: str) -> None:
    """Both stages of the golden step, as the Trainer runs them, the switch included; writes losses and gradients."""
    torch.set_num_threads(1)
    torch.backends.cudnn.allow_tf32 = False
    device = torch.device("cuda", rank) if backend == "nccl" else torch.device("cpu")
    if backend == "nccl":
        torch.cuda.set_device(device)
    dist.init_process_group(backend, init_method=f"file://{folder}/meet", rank=rank, world_size=size)
    comm.create_local_process_group(size)

    # Model and images of this process
    indices = torch.arange(4).chunk(size)[rank]
    model = golden.build_model().train().to(device)
    model.micro_batch_size = 1 if rank else 0  # must not matter
    images = golden.load()["image"].float()[indices]  # of which the model takes a mean of 0 and a deviation of 1
    batch = [{"image": image, "tokens": golden.load()["tokens"][i]} for image, i in zip(images, indices)]

    trainer, switch, results = SimpleNamespace(model=wrap_ddp(model), iter=0), UnfreezeHook(1), {}
    switch.trainer = trainer
    for trainer.iter, stage in enumerate(("stage1", "stage2")):
        switch.before_step()
        noise = golden.load()["train"][stage]["uniform"].diagonal().permute(2, 0, 1)[:, None][indices].to(device)
        unwrap_ddp(trainer.model).sim2mask.noise = lambda shape, device, noise=noise: noise
        trainer.model.zero_grad()
        losses = trainer.model(batch)
        sum(losses.values()).backward()
        gradients = {name: p.grad.cpu().clone() for name, p in model.named_parameters() if p.grad is not None}
        results[stage] = {
            "losses": {name: loss.detach().cpu() for name, loss in losses.items()},
            "gradients": gradients,
        }

    torch.save(results, f"{folder}/{rank}.pth")
    dist.destroy_process_group()


@pytest.mark.fault("(none) 2 and 4 processes, both stages", "losses and gradients of one process with the whole batch")
@pytest.mark.parametrize(
    "size, backend",
    [
        (2, "gloo"),
        (4, "gloo"),
        pytest.param(
            *(2, "nccl"),
            marks=[pytest.mark.gpu, pytest.mark.skipif(torch.cuda.device_count() < 2, reason="needs two GPUs")],
        ),
    ],
)
def test_processes_equal_one(tmp_path, size, backend):
    start_processes(work, (size, str(tmp_path), backend), size)
    for rank in (0, size - 1):
        results = torch.load(tmp_path / f"{rank}.pth", weights_only=True)
        for stage, ours in results.items():
            figures = golden.load()["train"][stage]
            for official, name in golden.LOSS_NAMES.items():
                if not name.startswith("loss_tv"):  # means over equal parts: each process has its own part's
                    torch.testing.assert_close(ours["losses"][name], figures["losses"][official], rtol=1e-5, atol=0)
            for name, gradient in from_official(figures["grads"]).items():
                assert (ours["gradients"][name] - gradient).norm() / gradient.norm() < 1e-4, (stage, name)
