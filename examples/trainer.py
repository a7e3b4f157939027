"""PoSE in a stock `transformers.Trainer`: a model with a window of 256 tokens learns to read 4,096.

Every row it is trained on has 256 tokens; their position indices skip, so that distances up to 4,096 are
met. With `--model` and text files of your own the window of that model is extended sixteen-fold.
"""

import argparse
import asyncio
from pathlib import Path

import torch
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer, Trainer, TrainingArguments

from skipwise import (
    Passages,
    PoSE,
    Rows,
    SkipCollator,
    check,
    export_checkpoint,
    extend_rope,
    load_documents,
    tokenize_documents,
)
from skipwise.demo.run import model_folder


def arguments() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("text", nargs="*", default=[Path(asyncio.__file__).parent], help="files or folders")
    parser.add_argument("--model", default=model_folder(), help="checkpoint folder (the small embedded one)")
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--batch", type=int, default=8, help="rows a step")
    parser.add_argument("--output", type=Path, default=Path("runs/trainer"))
    return parser.parse_args()


def main() -> None:
    """Extend, train, save."""
    args = arguments()

    # The model: its weights as they are, to be trained in float32; in its config a longer window.
    config = AutoConfig.from_pretrained(args.model)
    window, target = config.max_position_embeddings, 16 * config.max_position_embeddings
    config = extend_rope(config, target, "yarn")
    model = AutoModelForCausalLM.from_pretrained(args.model, config=config, dtype=torch.float32)
    check(model, target)  # raises if this model would cut rows at the skips, or ignore them

    # The rows of the whole run. They are shuffled already, and every epoch draws new skips.
    tokenizer = AutoTokenizer.from_pretrained(args.model)
    cache = args.output / "cache"
    documents = tokenize_documents(load_documents(args.text, cache_dir=cache), tokenizer, cache_dir=cache)
    sampler = PoSE(train_length=window, target_length=target, chunks=2)
    shortest, longest = sampler.passage_length
    passages = Passages(documents, min_length=shortest, max_length=longest, seed=0)
    rows = Rows(passages, sampler, count=args.steps * args.batch, seed=0)
    print(rows[0].chunks)

    trainer = Trainer(
        model,
        args=TrainingArguments(
            output_dir=str(args.output / "trainer"),
            num_train_epochs=1,  # `rows` are those of the whole run: passed again, they would be the same
            train_sampling_strategy="sequential",  # shuffled already; in order they are read fastest
            per_device_train_batch_size=args.batch,
            learning_rate=6e-4,
            bf16=torch.cuda.is_available(),  # as autocast: the weights stay in float32
            logging_steps=1,
        ),
        train_dataset=rows,
        data_collator=SkipCollator(),
    )
    trainer.train()
    export_checkpoint(model, tokenizer, args.output / "checkpoint")
    print(f"{args.output / 'checkpoint'}: {window} -> {target} tokens")


if __name__ == "__main__":
    main()
