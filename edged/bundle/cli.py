"""``edged bundle pack | sign | info | verify | selftest``: the commands that handle a bundle without the daemon.

Parsers only; errors are EdgedErrors for the caller to print. Engines come in through ``open_engine``: this package
imports none.
"""

from __future__ import annotations

import argparse
import asyncio
from collections.abc import Callable
from contextlib import AbstractAsyncContextManager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec

from edged.bundle import signing
from edged.bundle.archive import opened, pack
from edged.bundle.files import replace_durably
from edged.bundle.golden_form import has_float16, has_integers, load_golden
from edged.bundle.loaded import SIGNATURE, Bundle, open_bundle
from edged.bundle.selftest import SelftestReport, prove
from edged.errors import BundleError
from edged.ports import Engine

if TYPE_CHECKING:
    from argparse import _SubParsersAction

OpenEngine = Callable[[str, Bundle, int], AbstractAsyncContextManager[Engine]]
FAILED = 1  # exit code of a self-test that did not pass


def add_commands(subparsers: _SubParsersAction[argparse.ArgumentParser], open_engine: OpenEngine) -> None:
    """Add ``bundle`` with its commands. Every parser sets ``func``: arguments in, exit code out."""
    bundle = subparsers.add_parser("bundle", help="inspect, verify, pack and prove model bundles")
    commands = bundle.add_subparsers(dest="bundle_command", required=True, metavar="COMMAND")

    packing = commands.add_parser("pack", help="write a bundle directory as one file")
    packing.add_argument("directory", type=Path, help="the bundle directory")
    packing.add_argument("out", type=Path, help="the file to write; replaced if it exists")
    packing.set_defaults(func=run_pack)

    info = commands.add_parser("info", help="say what a bundle is (its files are verified)")
    info.add_argument("bundle", type=Path, help="a bundle directory or file")
    info.add_argument("--json", action="store_true", help="print the digest and the whole manifest as JSON")
    info.set_defaults(func=run_info)

    verify = commands.add_parser("verify", help="check files, graph, batch behaviour, golden data and plans")
    verify.add_argument("bundle", type=Path, help="a bundle directory or file")
    verify.add_argument("--key", type=Path, action="append", default=[], help="a public key that may have signed it")
    verify.set_defaults(func=run_verify)

    sign = commands.add_parser("sign", help="sign a bundle directory; its signature becomes model.sig")
    sign.add_argument("directory", type=Path, help="the bundle directory")
    sign.add_argument("--key", type=Path, required=True, help="an Ed25519 private key in PEM")
    sign.add_argument("--allow-downgrade", type=int, metavar="FROM",
                      help="let it replace newer models up to this release counter")  # fmt: skip
    sign.set_defaults(func=run_sign)

    selftest = commands.add_parser("selftest", help="prove a bundle on an engine with its golden data")
    selftest.add_argument("bundle", type=Path, help="a bundle directory or file")
    selftest.add_argument("--engine", default="onnxruntime", help="the engine to prove it on (default: %(default)s)")
    selftest.add_argument("--max-batch", type=int, default=8, choices=range(1, 65), metavar="1..64",
                          help="samples that the engine gets at once (default: %(default)s)")  # fmt: skip
    selftest.add_argument("--json", action="store_true", help="print the report as JSON")
    selftest.set_defaults(func=lambda args: run_selftest(args, open_engine))


def run_pack(args: argparse.Namespace) -> int:
    """Pack and say what was written."""
    bundle = pack(args.directory, args.out)
    print(f"{args.out}: {bundle.name}@{bundle.version}, {args.out.stat().st_size} bytes, digest {bundle.digest}")
    return 0


def run_sign(args: argparse.Namespace) -> int:
    """Write the signature into the directory, in place of the one that was there."""
    if args.allow_downgrade is not None and args.allow_downgrade < 0:
        raise BundleError("--allow-downgrade takes a release counter, at least 0")
    bundle = open_bundle(args.directory)
    key = signing.load_private_key(args.key)
    try:
        replace_durably(bundle.path / SIGNATURE, signing.sign(bundle, key, args.allow_downgrade))
    except OSError as error:
        raise BundleError(f"{bundle.path / SIGNATURE} cannot be written: {error.strerror}") from None
    print(f"{bundle.path / SIGNATURE}: {bundle.name}@{bundle.version}, key {signing.key_hint(key.public_key())[:12]}")
    return 0


def run_info(args: argparse.Namespace) -> int:
    """Describe a bundle."""
    with opened(args.bundle) as bundle:
        if args.json:
            table: dict[str, Any] = {"digest": bundle.digest, **msgspec.to_builtins(bundle.manifest)}
            print(msgspec.json.format(msgspec.json.encode(table), indent=2).decode())
        else:
            print("\n".join(description(bundle)))
    return 0


def description(bundle: Bundle) -> list[str]:
    """The lines that ``info`` prints."""
    manifest = bundle.manifest
    entry, readout = manifest.inputs[0], manifest.readout
    neurons = sorted({state.neuron or "delay" for state in manifest.states})
    size = sum(file.size for file in manifest.files.values())
    return [
        f"{manifest.name}@{manifest.version}: {manifest.description}",
        f"digest     {bundle.digest}",
        f"license    {manifest.license}",
        f"input      {entry.name} {entry.dtype} {list(entry.shape)}, {entry.time}",
        f"time       {manifest.timesteps} steps, {readout.kind} of {readout.window.start} to {readout.window.stop - 1}",
        f"states     {len(manifest.states)} ({', '.join(neurons) or 'none'})",
        f"classes    {bundle.classes}: {', '.join(manifest.labels[:10])}{' …' if bundle.classes > 10 else ''}",
        f"source     {manifest.semantics.source}",
        f"written by {manifest.converter.name} {manifest.converter.version}",
        f"files      {len(manifest.files)}, {size} bytes",
    ]


def run_verify(args: argparse.Namespace) -> int:
    """Check everything that can be checked without an engine of ours; one line for each step that passed."""
    with opened(args.bundle) as bundle:
        print(f"files   ok: {len(bundle.manifest.files)} files as the manifest says")
        verify_graph(bundle)
        print("graph   ok: canonical, and samples of a batch do not touch each other")
        if args.key:
            print(f"signer  ok: {signing.verify(bundle, args.key).key}")
        golden = load_golden(bundle)
        kinds = {"integers": has_integers(bundle, golden), "float16": has_float16(bundle, golden)}
        told = [f"{'also' if there else 'none'} in {kind}" for kind, there in kinds.items()]
        print(f"golden  ok: complete and of the right shapes, {', '.join(told)}")
        print(f"{bundle.name}@{bundle.version} is a valid bundle, digest {bundle.digest}")
    return 0


def verify_graph(bundle: Bundle) -> None:
    """Static checks, all plans, and the batch probe. Needs onnx and onnxruntime. Raises BundleError."""
    try:
        from edged.bundle.graph.checks import check_step_graph
        from edged.bundle.graph.probe import probe_batch
        from edged.bundle.plans import derive
    except ModuleNotFoundError as error:
        raise BundleError(
            f"the package {error.name} is needed to verify a graph", "pip install 'edged[bundle,onnxruntime]'"
        ) from None
    derive(bundle)
    probe_batch(check_step_graph(bundle.read(bundle.manifest.variant.model), bundle.spec), bundle.spec)


def run_selftest(args: argparse.Namespace, open_engine: OpenEngine) -> int:
    """Prove a bundle; exit code 1 when it does not pass."""
    with opened(args.bundle) as bundle:
        report = asyncio.run(_proved(bundle, args.engine, args.max_batch, open_engine))
    if args.json:
        table = {"passed": report.passed, **msgspec.to_builtins(report)}
        print(msgspec.json.format(msgspec.json.encode(table), indent=2).decode())
    else:
        for check in report.checks:
            print(f"{check.name:10} {'ok' if check.passed else 'FAILED'}: {check.detail}")
        print(f"{report.bundle} {'proved itself' if report.passed else 'FAILED'} on {report.engine}")
    return 0 if report.passed else FAILED


async def _proved(bundle: Bundle, engine_name: str, max_batch: int, open_engine: OpenEngine) -> SelftestReport:
    async with open_engine(engine_name, bundle, max_batch) as engine:
        return await prove(engine, bundle)
