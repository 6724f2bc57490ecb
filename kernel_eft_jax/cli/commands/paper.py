"""`kernel-eft paper`: figures, data and table of the published study, written part by part."""

import argparse
import time

import jax

from ... import paper
from ..outputs import CHECKPOINT


def run(arguments: argparse.Namespace) -> None:
    """The main job, or with --all every part."""
    start = time.perf_counter()
    folder, sections, files = arguments.out, [], []
    folder.mkdir(parents=True, exist_ok=True)
    try:
        for name, item in parts(arguments):
            sections += item.sections
            files += [*paper.write(item, folder), *paper.write_table(sections, str(paper.MAIN), folder)]
            if not arguments.quiet:
                print(f"\n{paper.markdown(item.sections, name)}", flush=True)
    except KeyboardInterrupt:
        kept = (
            f"{len(set(files))} files of the parts that are finished are in {folder}"
            if files
            else "no part is finished"
        )
        checkpoint = folder / CHECKPOINT
        more = f", and the same command goes on from {checkpoint}" if checkpoint.exists() else ""
        raise KeyboardInterrupt(f"Interrupted: {kept}{more}.") from None
    if not arguments.quiet:
        print(f"{len(set(files))} files in {folder}, figures among them, after {time.perf_counter() - start:.0f} s.")


def parts(arguments: argparse.Namespace):
    """Name and content of each part."""
    sizes = paper.FULL if arguments.full else paper.LAPTOP
    if arguments.networks is not None:
        sizes = sizes._replace(main=arguments.networks)
    key = jax.random.key(arguments.seed)
    if arguments.all:
        yield from paper.everything(sizes, key, checkpoint=arguments.out / CHECKPOINT)
    else:
        yield "main job", paper.main_item(paper.main_job(sizes.main, key))
