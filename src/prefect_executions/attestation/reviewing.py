"""The commands by which a reviewer checks a signed bundle with openssl and coreutils alone."""

from __future__ import annotations

import shlex

from prefect_executions.attestation.statements import PAYLOAD_TYPE, STATEMENT_TYPE

_FILE = "metadata/attestation.dsse.json"


def commands(key_file: str) -> tuple[str, ...]:
    """Return the commands, to be given in the bundle's folder, that check its seal against the public key *key_file*.

    They unpack what was signed, check the signature over it, that the manifest is the
    one that was signed, and that every file is the one that the manifest lists.
    """
    manifest = "$(sha256sum < manifest-sha256.txt | cut -c1-64)"
    first = rf"\"subject\":\[{{\"name\":\"manifest-sha256.txt\",\"digest\":{{\"sha256\":\"{manifest}\"}}}}"
    return (
        "D=$(mktemp -d)",
        f'sed -n \'s/^  "payload": "\\(.*\\)",$/\\1/p\' {_FILE} | base64 -d > $D/payload',
        f'sed -n \'s/^      "sig": "\\(.*\\)"$/\\1/p\' {_FILE} | base64 -d > $D/signature',
        f"(printf 'DSSEv1 {len(PAYLOAD_TYPE)} {PAYLOAD_TYPE} %d ' $(wc -c < $D/payload); cat $D/payload) > $D/signed",
        f"openssl pkeyutl -verify -pubin -inkey {shlex.quote(key_file)} -rawin -in $D/signed -sigfile $D/signature",
        f'grep -c "^{{\\"_type\\":\\"{STATEMENT_TYPE}\\",{first}" $D/payload',
        "sha256sum --quiet -c manifest-sha256.txt",
    )
