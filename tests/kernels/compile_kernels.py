"""Compile every kernel down to machine code of a Hopper GPU, which needs none; test_kernels.py runs this."""

# mypy: disable-error-code="import-untyped, import-not-found"

from __future__ import annotations

from typing import Any

import triton.language as tl
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource, compile

from ecgfm.kernels import _assemble_triton, _ema_triton, _ingest_triton, _masked_error_triton

HOPPER = GPUTarget("cuda", 90, 32)
FLOATS = ("clip", "eps", "weight")


def compiled(kernel: Any, pointers: dict[str, str], constants: dict[str, Any]) -> bool:
    """Tell whether there is machine code of it: what is no pointer, float or constant is an int32."""
    types = {name: "fp32" if name in FLOATS else "i32" for name in kernel.arg_names}
    types |= pointers | dict.fromkeys(constants, "constexpr")
    source = ASTSource(fn=kernel, signature=types, constexprs=constants)
    return "cubin" in compile(source, target=HOPPER).asm


def main() -> None:
    """Print a word for each."""
    ingest = {"counts": "*i16", "index": "*i64", "out": "*bf16"} | dict.fromkeys(("offset", "factor", "shift"), "*fp32")
    options = {"P": 25, "BLOCK": 1024, "HAS_OFFSET": True, "HAS_SHIFT": True, "HAS_INDEX": True}
    for apart in (False, True):
        size = 25 if apart else 300
        print("ingest" * compiled(_ingest_triton._ingest, ingest, options | {"V": size, "APART": apart}))
    assemble = {"tokens": "*bf16", "keep": "*i64", "hide": "*i64"}
    assemble |= dict.fromkeys(("position", "before", "mask_token", "out"), "*fp32")
    options = {"D": 192, "HAS_BEFORE": True, "HAS_KEEP": True, "HAS_HIDE": True, "BLOCK": 1024}
    print("assemble" * compiled(_assemble_triton._assemble, assemble, options))
    error = {"guess": "*bf16", "target": "*fp32", "hide": "*i64"}
    options = {"SMOOTH": True, "NORM": True, "D": 384, "ROWS": 4, "BLOCK": 512}
    print("error" * compiled(_masked_error_triton._forward, {**error, "out": "*fp32"}, options))
    backward = {**error, "out": "*bf16", "scale": "*fp32"}
    print("gradient" * compiled(_masked_error_triton._backward_kernel, backward, options))
    for copy in (False, True):
        options = {"COPY": copy, "COPY_TYPE": tl.bfloat16, "BLOCK": 1024, "PIECE": 16}
        print("ema" * compiled(_ema_triton._move, {"table": "*i64"}, options))


if __name__ == "__main__":
    main()
