"""`kernel-eft paper`: figures, data and table of the published study, written part by part."""

import argparse
import itertools
import time
from collections.abc import Iterator

import jax

from ...studies import kawase_ota
from ..outputs import CHECKPOINT


def run(arguments: argparse.Namespace) -> None:
    """The main job, or with --all every part."""
    start = time.perf_counter()
    folder, sections, files = arguments.out, [], []
    folder.mkdir(parents=True, exist_ok=True)
    try:
        for name, item in asked_parts(arguments):
            sections += item.sections
            files += [
                *kawase_ota.write_item(item, folder),
                *kawase_ota.write_table(sections, str(kawase_ota.MAIN), folder),
            ]
            if not arguments.quiet:
                print(f"\n{kawase_ota.markdown(item.sections, name)}", flush=True)
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


def asked_parts(arguments: argparse.Namespace) -> Iterator[tuple[str, kawase_ota.Item]]:
    """Name and content of each part that is asked for."""
    sizes = kawase_ota.FULL if arguments.full else kawase_ota.LAPTOP
    if arguments.networks is not None:
        sizes = sizes._replace(main=arguments.networks)
    checkpoint = arguments.out / CHECKPOINT if arguments.all else None
    key, progress = jax.random.key(arguments.seed), not arguments.quiet
    every = kawase_ota.everything(sizes, key, checkpoint=checkpoint, progress=progress)
    return every if arguments.all else itertools.islice(every, 1)
