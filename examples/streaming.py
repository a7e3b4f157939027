"""PoSE on a stream: rows of a corpus that is neither downloaded nor indexed, with exact resume.

Here the stream is one of local text files; a hub dataset is read in the same way. Run the script with
`--steps 10`, then with `--steps 20`: it goes on with row 81, as if it had never stopped.
"""

import argparse
import asyncio
from functools import partial
from pathlib import Path

import torch
from datasets import load_dataset
from torchdata.stateful_dataloader import StatefulDataLoader
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

from skipwise import PoSE, RowStream, SkipCollator, check, export_checkpoint, extend_rope
from skipwise.demo.run import model_folder

TEXT = sorted(str(file) for file in Path(asyncio.__file__).parent.glob("*.py"))


def arguments() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("text", nargs="*", default=TEXT, help="text files (the library sources of asyncio)")
    parser.add_argument("--model", default=model_folder(), help="checkpoint folder (the small embedded one)")
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--batch", type=int, default=8, help="rows a step")
    parser.add_argument("--workers", type=int, default=2, help="processes that make rows")
    parser.add_argument("--output", type=Path, default=Path("runs/streaming"))
    return parser.parse_args()


def main() -> None:
    """Extend, train, save; or go on where an earlier run stopped."""
    args = arguments()

    # The model: its weights as they are, to be trained in float32; in its config a longer window.
    config = AutoConfig.from_pretrained(args.model)
    window, target = config.max_position_embeddings, 16 * config.max_position_embeddings
    config = extend_rope(config, target, "yarn")
    model = AutoModelForCausalLM.from_pretrained(args.model, config=config, dtype=torch.float32)
    model.to("cuda" if torch.cuda.is_available() else "cpu")
    check(model, target)  # raises if this model would cut rows at the skips, or ignore them

    # The rows, without end: epoch after epoch, each with new skips. The files are shared among the workers.
    tokenizer = AutoTokenizer.from_pretrained(args.model)
    encode = partial(tokenizer, add_special_tokens=False, verbose=False)
    text = load_dataset("text", data_files=args.text, sample_by="document", streaming=True)["train"]
    documents = text.map(encode, input_columns="text")
    rows = RowStream(documents, PoSE(train_length=window, target_length=target), seed=0, endless=True)
    collator = SkipCollator()
    loader = StatefulDataLoader(rows, args.batch, num_workers=args.workers, collate_fn=collator)

    optimizer = torch.optim.AdamW(model.parameters(), lr=6e-4)
    saved, start = args.output / "resume.pt", 0
    if saved.exists():
        state = torch.load(saved)
        model.load_state_dict(state["model"])
        optimizer.load_state_dict(state["optimizer"])
        loader.load_state_dict(state["rows"])
        start = state["step"]
    for step, batch in zip(range(start, args.steps), loader, strict=False):
        batch = {name: tensor.to(model.device) for name, tensor in batch.items()}
        loss = model(**batch, use_cache=False).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        print(f"step {step + 1}: loss {loss.item():.3f}, largest position {batch['position_ids'].max()}")
    parts = {"model": model, "optimizer": optimizer, "rows": loader}
    args.output.mkdir(parents=True, exist_ok=True)
    torch.save({"step": args.steps} | {name: part.state_dict() for name, part in parts.items()}, saved)
    export_checkpoint(model, tokenizer, args.output / "checkpoint")
    print(f"{args.output / 'checkpoint'}: {window} -> {target} tokens")


if __name__ == "__main__":
    main()
