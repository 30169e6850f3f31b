"""What training processes tell one another: JSON, whatever its length, and no pickle."""

import multiprocessing
import re
from pathlib import Path

import tunesmith_trainer

VALUES = [{"weights ä.safetensors": ["ab" * 32, 2**40]}, None, {str(number): number for number in range(2000)}]


def process(rank, folder, told):
    from datetime import timedelta

    from torch import distributed

    from tunesmith_trainer.training import exchange

    meeting = f"file://{folder}/meeting"
    distributed.init_process_group("gloo", init_method=meeting, rank=rank, world_size=len(VALUES), timeout=timedelta(seconds=60))
    # Of a group without the first process the first one is another.
    pair = distributed.new_group([1, 2], backend="gloo")
    whole = exchange.gather(VALUES[rank], None, rank == 0)
    everywhere = exchange.gather_everywhere(VALUES[rank], None)
    two = exchange.gather(rank, pair, rank == 1) if rank else None
    told.put((rank, whole, everywhere, two))
    distributed.destroy_process_group()


def test_all_values_come_in_their_order_to_the_first_or_to_all(tmp_path):
    context = multiprocessing.get_context("fork")
    told = context.Queue()
    processes = [context.Process(target=process, args=(rank, tmp_path, told)) for rank in range(len(VALUES))]
    for each in processes:
        each.start()
    found = sorted([told.get(timeout=90) for _ in processes], key=lambda answer: answer[0])
    for each in processes:
        each.join(30)
    assert [whole for _, whole, _, _ in found] == [VALUES, [], []]
    assert [everywhere for _, _, everywhere, _ in found] == [VALUES] * 3
    assert [two for _, _, _, two in found] == [None, [1, 2], []]


def test_no_call_of_ours_sends_pickles():
    sources = Path(tunesmith_trainer.__file__).parent.glob("*.py")
    calls = re.compile(r"\b(all_gather_object|gather_object|broadcast_object_list|scatter_object_list|(send|recv)_object_list|pickle\.loads?)\(")
    assert [path.name for path in sources if calls.search(path.read_text())] == []
