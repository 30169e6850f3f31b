"""Figures as a plain loop over rows has them: each row alone, by transformers' own loss."""

from types import SimpleNamespace


def load(folder, base=None):
    """A folder's model in 32 bits; the base's with the adapter in the folder, where it holds one."""
    import torch
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    adapter = (folder / "adapter_config.json").is_file()
    model = AutoModelForCausalLM.from_pretrained(base if adapter else folder, dtype=torch.float32)
    return (PeftModel.from_pretrained(model, str(folder)) if adapter else model).eval()


def nats(model, ids, labels):
    """The summed loss of one row, and how many tokens it was taken on."""
    import torch

    with torch.no_grad():
        loss = model(input_ids=torch.tensor([ids]), labels=torch.tensor([labels])).loss
    count = sum(label != -100 for label in labels[1:])
    return float(loss) * count, count


def rows_of(folder, path, max_length, only_assistant=True):
    """A data file's rows as training reads them: token ids and labels, cut at the maximum length."""
    from tunesmith_trainer.data.dataset import Cut
    from tunesmith_trainer.training import loop

    encoded = loop.encoded_rows(str(path), str(folder), only_assistant, Cut(max_length, "start"))
    return [SimpleNamespace(ids=row["input_ids"][:max_length], labels=row["labels"][:max_length]) for row in encoded]


def loss(model, rows):
    """Nats per trained token over all rows."""
    sums = [nats(model, row.ids, row.labels) for row in rows if any(label != -100 for label in row.labels[1:])]
    return sum(each for each, _ in sums) / sum(count for _, count in sums)


def gradient_norm(model, rows):
    """The norm of the gradient of that loss."""
    import torch

    model.zero_grad()
    count = sum(label != -100 for row in rows for label in row.labels[1:])
    for row in rows:
        own = sum(label != -100 for label in row.labels[1:])
        (model(input_ids=torch.tensor([row.ids]), labels=torch.tensor([row.labels])).loss * own / count).backward()
    return float(torch.stack([parameter.grad.norm() for parameter in model.parameters() if parameter.grad is not None]).norm())
