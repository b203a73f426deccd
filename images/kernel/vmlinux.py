"""Unpacks the ELF kernel (vmlinux) from a bzImage (vmlinuz).

    python3 vmlinux.py VMLINUZ VMLINUX

The layout is the x86 boot protocol's (Documentation/arch/x86/boot.rst): since protocol 2.08 the setup header names
where the compressed kernel lies. Debian compresses it with zstd, and the kernel build appends the unpacked size.
"""

import struct
import subprocess
import sys

ZSTD_MAGIC = b"\x28\xb5\x2f\xfd"
ELF_MAGIC = b"\x7fELF"


def payload(image: bytes) -> tuple[bytes, int]:
    """The compressed kernel inside `image`, and the size it unpacks to."""
    if image[0x202:0x206] != b"HdrS":
        sys.exit("not a bzImage: the setup header is missing")
    (version,) = struct.unpack_from("<H", image, 0x206)
    if version < 0x0208:
        sys.exit(f"boot protocol {version:#06x} is older than 2.08, which first names the payload")
    setup_sectors = image[0x1F1] or 4
    offset, length = struct.unpack_from("<II", image, 0x248)
    start = (setup_sectors + 1) * 512 + offset
    packed = image[start : start + length]
    if len(packed) != length or packed[:4] != ZSTD_MAGIC:
        sys.exit("the kernel is not compressed with zstd")
    return packed[:-4], struct.unpack("<I", packed[-4:])[0]


def main(vmlinuz: str, vmlinux: str) -> None:
    with open(vmlinuz, "rb") as file:
        packed, size = payload(file.read())
    with open(vmlinux, "w+b") as file:
        subprocess.run(["zstd", "--decompress", "--stdout"], input=packed, stdout=file, check=True)
        file.seek(0)
        if file.read(4) != ELF_MAGIC:
            sys.exit("the payload is not an ELF file")
        if file.seek(0, 2) != size:
            sys.exit(f"the payload unpacks to {file.tell()} bytes, its header says {size}")


if __name__ == "__main__":
    main(*sys.argv[1:])
