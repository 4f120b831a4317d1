"""The way to a server that speaks S3, and its errors as OSErrors. Imports s3fs when it is asked for, not before."""

import errno
import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from orchestrator.files.places import Uri
from orchestrator.record import InvalidInput

TIMEOUTS = {"connect_timeout": 5, "read_timeout": 20, "retries": {"max_attempts": 1}}


def connect(root: Uri) -> Any:
    try:
        import s3fs
    except ImportError as error:
        raise InvalidInput(
            f"{root}: s3:// needs the extra \"s3\": pip install 'pruning-orchestrator[s3]' ({error})"
        ) from error
    endpoint = os.environ.get("AWS_ENDPOINT_URL_S3", os.environ.get("AWS_ENDPOINT_URL"))
    s3 = s3fs.S3FileSystem(use_listings_cache=False, endpoint_url=endpoint, config_kwargs=TIMEOUTS)
    s3.retries = 1  # Patience tries again
    return s3


@contextmanager
def as_os_errors() -> Iterator[None]:
    """Errors of the libraries underneath, as what they are: a connection that failed, or credentials."""
    try:
        yield
    except OSError:
        raise
    except Exception as error:
        from botocore import exceptions as boto
        from botocore.parsers import ResponseParserError

        if isinstance(error, (boto.NoCredentialsError, boto.PartialCredentialsError, boto.CredentialRetrievalError)):
            raise PermissionError(errno.EACCES, f"{error}; set AWS_PROFILE or AWS_ACCESS_KEY_ID") from error
        away = (boto.HTTPClientError, boto.ConnectionError, ResponseParserError, boto.IncompleteReadError)
        if isinstance(error, away) or type(error).__module__.startswith("aiohttp"):
            raise ConnectionError(str(error)) from error
        raise


def check_bucket(error: FileNotFoundError) -> None:
    """An object that is not there is no error; a bucket that is not there is one."""
    if _code(error) == "NoSuchBucket":
        raise error


def is_precondition(error: OSError) -> bool:
    return _code(error) in ("PreconditionFailed", "412")


def _code(error: OSError) -> str:
    response = getattr(error.__cause__, "response", None) or {}
    return str(response.get("Error", {}).get("Code", ""))
