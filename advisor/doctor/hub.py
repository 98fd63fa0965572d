"""Access to the Hugging Face hub: offline switch, token, cache, and on request the network."""

import os
from collections.abc import Iterator
from tempfile import TemporaryFile
from urllib.error import HTTPError
from urllib.request import Request, urlopen

from advisor.doctor.disk import nearest
from advisor.doctor.finding import Finding
from advisor.hub_cache import hub_cache, offline_switch, read_token

HUB_TIMEOUT_S = 3.0
STILL_WORKS = "catalogue, cache and folders still work"


def examine_hub(*, ask: bool) -> Iterator[Finding]:
    """The network is used only if `ask`; the token is never shown."""
    yield _cache()
    if switch := offline_switch():
        yield Finding(
            topic="hub", level="note", found=f"{switch} is set", meaning=STILL_WORKS, mend="unset it to download"
        )
        return
    token = read_token()
    if token is None:
        yield Finding(
            topic="hub", level="note", found="no token", meaning="gated models need one", mend="`hf auth login`"
        )
    else:
        yield Finding(topic="hub", level="ok", found="a token is set", meaning="gated models can be asked for")
    if ask:
        yield ask_hub(os.environ.get("HF_ENDPOINT", "https://huggingface.co"), token)


def _cache() -> Finding:
    cache = hub_cache()
    try:
        with TemporaryFile(dir=nearest(cache)):
            pass
    except OSError as error:
        return Finding(
            topic="hub cache",
            level="problem",
            found=f"{cache} cannot be written: {error.strerror}",
            meaning="no model can be downloaded",
            mend="set HF_HOME to a folder that can be written",
        )
    return Finding(topic="hub cache", level="ok", found=f"{cache}", meaning="downloads can be kept there")


def ask_hub(endpoint: str, token: str | None) -> Finding:
    """Whether the hub answers, and knows the token where there is one."""
    headers = {"Authorization": f"Bearer {token}"} if token else {}
    path, method = ("/api/whoami-v2", "GET") if token else ("", "HEAD")
    try:
        with urlopen(Request(endpoint + path, method=method, headers=headers), timeout=HUB_TIMEOUT_S):
            pass
    except HTTPError as error:  # it answers
        if token and error.code == 401:
            return Finding(
                topic="hub",
                level="problem",
                found=f"{endpoint} refuses the token",
                meaning="gated models cannot be downloaded",
                mend="make a new token and `hf auth login`",
            )
    except (OSError, ValueError) as error:
        reason = str(getattr(error, "reason", error))[:80]
        return Finding(
            topic="hub", level="note", found=f"{endpoint}: {reason}", meaning=STILL_WORKS, mend="check the network"
        )
    return Finding(topic="hub", level="ok", found=f"{endpoint} answers", meaning="any public model can be named")
