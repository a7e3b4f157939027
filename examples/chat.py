"""PoSE on conversations: rows are cut only between turns, and only the assistant's words are learned.

The chats made up here tell a key, talk of other things, and ask for the key. All of it fits into the 256
tokens of a row; the positions say that thousands of tokens lie between. A JSON-lines file with `messages`
takes their place if one is given.
"""

import argparse
import json
from pathlib import Path

import torch
from torch.utils.data import DataLoader
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

from skipwise import (
    Answers,
    Passages,
    Rows,
    SkipCollator,
    TokenizedDocuments,
    Turns,
    check,
    export_checkpoint,
    extend_rope,
)
from skipwise.demo.run import model_folder

# ASCII's own start and end of text, which any byte-level vocabulary has. A chat model brings its own
# template and its own marks (in ChatML <|im_start|> and <|im_end|>): take those.
START, END = "\x02", "\x03"
TEMPLATE = "{% for m in messages %}" + START + "{{ m.role + '\n' + m.content }}" + END + "{% endfor %}"


def chats(count: int) -> list[list[dict[str, str]]]:
    """Conversations of ten messages, about 150 tokens."""
    made = []
    for i in range(count):
        said = [f"The key of box {i} is {7919 * (i + 2) % 90000}.", "Noted."]
        for j in range(3):
            said += [f"What is {i} + {j}?", f"It is {i + j}."]
        said += [f"What is the key of box {i}?", said[0]]
        made.append([{"role": ("user", "assistant")[k % 2], "content": said[k]} for k in range(len(said))])
    return made


def arguments() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("chats", nargs="?", type=Path, help="JSON lines with `messages`")
    parser.add_argument("--model", default=model_folder(), help="checkpoint folder (the small embedded one)")
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--batch", type=int, default=8, help="rows a step")
    parser.add_argument("--output", type=Path, default=Path("runs/chat"))
    return parser.parse_args()


def main() -> None:
    """Extend, train, save."""
    args = arguments()

    # The model: its weights as they are, to be trained in float32; in its config a longer window.
    config = AutoConfig.from_pretrained(args.model)
    window, target = config.max_position_embeddings, 16 * config.max_position_embeddings
    config = extend_rope(config, target, "yarn")
    model = AutoModelForCausalLM.from_pretrained(args.model, config=config, dtype=torch.float32)
    model.to("cuda" if torch.cuda.is_available() else "cpu")
    check(model, target)  # raises if this model would cut rows at the skips, or ignore them

    # The conversations, and what of them is learned: the assistant's words, with the mark that ends them.
    tokenizer = AutoTokenizer.from_pretrained(args.model)
    tokenizer.chat_template = TEMPLATE
    messages = [json.loads(line)["messages"] for line in args.chats.open()] if args.chats else chats(12)
    documents = TokenizedDocuments.from_ids(tokenizer.apply_chat_template(messages)["input_ids"])
    start, end = tokenizer.convert_tokens_to_ids(tokenizer.tokenize(START + END))
    answers = Answers(tokenizer.encode(START + "assistant", add_special_tokens=False), [end])
    seen = [i for i in range(len(documents)) if answers.mask(documents[i][:window]).any()]  # has a loss

    # The rows of the whole run: one conversation each, from its start. Every epoch draws new skips.
    sampler = Turns(train_length=window, target_length=target, turn_starts=[start])
    shortest, longest = sampler.passage_length
    chosen = documents.select(seen)
    passages = Passages(chosen, min_length=shortest, max_length=longest, seed=0, from_start=True)
    rows = Rows(passages, sampler, count=args.steps * args.batch, seed=0)
    collator = SkipCollator(answers=answers)
    first = collator([rows[0]])
    print("learned of row 0:", repr(tokenizer.decode(first["input_ids"][first["labels"] != -100])))

    optimizer = torch.optim.AdamW(model.parameters(), lr=6e-4)
    for batch in DataLoader(rows, batch_size=args.batch, collate_fn=collator):
        batch = {name: tensor.to(model.device) for name, tensor in batch.items()}
        loss = model(**batch, use_cache=False).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        print(f"loss {loss.item():.3f}, largest position {batch['position_ids'].max()}")
    export_checkpoint(model, tokenizer, args.output / "checkpoint")
    print(f"{args.output / 'checkpoint'}: {window} -> {target} tokens")


if __name__ == "__main__":
    main()
