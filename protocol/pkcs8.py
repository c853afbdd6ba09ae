"""A passphrase around a private key: PKCS8 with PBES2, scrypt and AES-256-CBC (RFC 8018, RFC 7914), as PEM.

The library writes PBKDF2 with 2,048 rounds, which a stolen file survives for hours; it reads scrypt as well, and so does
`openssl pkey`. So the few bytes of DER are written here, and read there.
"""

from __future__ import annotations

import secrets
from typing import Final

from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes
from cryptography.hazmat.primitives.kdf.scrypt import Scrypt
from cryptography.hazmat.primitives.padding import PKCS7

from protocol.canonical import b64

# 16 MiB and five passes, one of OWASP's equal choices; OpenSSL's tools refuse to spend more than 32 MiB.
COST: Final = 2**14
BLOCK: Final = 8
PASSES: Final = 5

_PBES2 = bytes.fromhex("06092a864886f70d01050d")  # 1.2.840.113549.1.5.13
_SCRYPT = bytes.fromhex("06092b06010401da47040b")  # 1.3.6.1.4.1.11591.4.11
_AES_256_CBC = bytes.fromhex("060960864801650304012a")  # 2.16.840.1.101.3.4.1.42
_INTEGER, _OCTETS, _SEQUENCE = 0x02, 0x04, 0x30


def encrypt(key: bytes, passphrase: bytes) -> bytes:
    """A PKCS8 key (DER, unencrypted) as an "ENCRYPTED PRIVATE KEY" in PEM, with a fresh salt and IV."""
    salt, iv = secrets.token_bytes(16), secrets.token_bytes(16)
    secret = Scrypt(salt=salt, length=32, n=COST, r=BLOCK, p=PASSES).derive(passphrase)
    padder = PKCS7(128).padder()
    encryptor = Cipher(algorithms.AES(secret), modes.CBC(iv)).encryptor()
    sealed = encryptor.update(padder.update(key) + padder.finalize()) + encryptor.finalize()
    scrypt = _tagged(_SEQUENCE, _tagged(_OCTETS, salt) + _integer(COST) + _integer(BLOCK) + _integer(PASSES))
    derivation = _tagged(_SEQUENCE, _SCRYPT + scrypt)
    cipher = _tagged(_SEQUENCE, _AES_256_CBC + _tagged(_OCTETS, iv))
    algorithm = _tagged(_SEQUENCE, _PBES2 + _tagged(_SEQUENCE, derivation + cipher))
    text = b64(_tagged(_SEQUENCE, algorithm + _tagged(_OCTETS, sealed)))
    lines = [text[at : at + 64] for at in range(0, len(text), 64)]
    return "\n".join(
        ["-----BEGIN ENCRYPTED PRIVATE KEY-----", *lines, "-----END ENCRYPTED PRIVATE KEY-----", ""]
    ).encode()


def _tagged(tag: int, content: bytes) -> bytes:
    size = len(content)
    if size < 128:
        return bytes([tag, size]) + content
    octets = size.to_bytes((size.bit_length() + 7) // 8, "big")
    return bytes([tag, 0x80 | len(octets)]) + octets + content


def _integer(value: int) -> bytes:
    return _tagged(_INTEGER, value.to_bytes(value.bit_length() // 8 + 1, "big"))
