"""From the Hugging Face Hub: a model's files, checked, in the cache or a folder of one's own."""

import contextlib
import json
import re
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

from huggingface_hub import (
    constants,
    get_hf_file_metadata,
    hf_hub_download,
    hf_hub_url,
    try_to_load_from_cache,
)
from huggingface_hub.utils import (
    EntryNotFoundError,
    HfHubHTTPError,
    LocalEntryNotFoundError,
    validate_repo_id,
)

from efficient_vits._hub_cache import WEIGHTS_NAMES, check_cached, content_name
from efficient_vits._state import WeightsError
from efficient_vits.weights._files import read_state_dict
from efficient_vits.weights._hub_config import Config, check_config, check_weights
from efficient_vits.weights._hub_retry import BUSY, HubError, explain, hub_errors, with_retries

_COMMIT = re.compile("[0-9a-f]{40}")
_NAME = re.compile("[0-9A-Za-z-]{1,128}")
_REVISION = re.compile("[0-9A-Za-z_][0-9A-Za-z_./+-]{0,127}")


def pull(
    repo_id: str,
    *,
    revision: str | None = None,
    directory: str | Path | None = None,
    cache_dir: str | Path | None = None,
    token: str | bool | None = None,
) -> Path:
    """Download a model from the Hub, check it, and return the folder that it is in.

    ``timm.create_model(f"local-dir:{folder}", pretrained=True)`` loads it from there, without the
    network. Files that are in the cache are not downloaded again; a commit that is there is not
    even asked for. While the Hub is busy it is asked again, and a connection that breaks is taken
    up where it broke.

    Before the folder is returned, each file is compared with the hash that the Hub has of it, the
    configuration may only name a model of timm's registry with plain arguments, and the weights
    must be safetensors, or a PyTorch file of tensors alone. Nothing of the repository is run.

    Args:
        repo_id: Repository, such as ``organisation/name``.
        revision: Branch, tag or commit; the main branch by default. A commit pins the files.
        directory: Folder to put the files into, which must be empty or not there; by default the
            folder of the client's cache.
        cache_dir: Folder of the cache; by default the client's own, see ``HF_HOME``.
        token: Token for private repositories; by default that of ``hf auth login`` or
            ``HF_TOKEN``. False sends none.

    Raises:
        HubError: There is no such repository, revision or file, it is not open to the token, or the
            Hub cannot be reached and the cache does not have it.
        WeightsError: The files are damaged or refused.
        ValueError: No repository has this name; `directory` has something in it.

        In each case folder and cache are as they were.
    """
    validate_repo_id(repo_id)
    if revision is not None and (".." in revision or not _REVISION.fullmatch(revision)):
        raise ValueError(f"revision={revision!r} is no branch, tag or commit")
    try:
        return _Pull(repo_id, revision, cache_dir, token).into(directory)
    except _Absent as error:
        raise HubError(str(error)) from error


class _Pull:
    def __init__(
        self,
        repo_id: str,
        revision: str | None,
        cache_dir: str | Path | None,
        token: str | bool | None,
    ) -> None:
        self.repo_id = repo_id
        self.revision = revision
        self.cache_dir = Path(constants.HF_HUB_CACHE if cache_dir is None else cache_dir)
        self.token = token
        self.trouble: Exception | None = None  # why the Hub is out of reach, if it says so
        self.storage = self.cache_dir / "--".join(["models", *repo_id.split("/")])

    def into(self, directory: str | Path | None) -> Path:
        target = None if directory is None else Path(directory).resolve()
        if target is not None and target.exists() and not _is_empty(target):
            raise ValueError(f"{target} is there and not an empty folder; name another one")
        with _as_it_was(self.storage):
            files = self.files()
        if target is None:
            return files[0].parent
        target.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=target.parent) as scratch:
            staged = Path(scratch, target.name)
            staged.mkdir()
            for path in files:
                shutil.copyfile(path, staged / path.name)
            if target.is_dir():
                target.rmdir()
            staged.rename(target)
        return target

    def files(self) -> list[Path]:
        """Configuration, weights and model card in the cache, checked; all of one commit."""
        path = self.fetch("config.json", self.revision)
        commit = path.parent.name
        try:
            content = json.loads(path.read_text(encoding="utf-8"))
        except ValueError as error:
            raise WeightsError(f"config.json of {self.repo_id} is no JSON: {error}") from error
        config = check_config(content, self.repo_id)
        weights = self.fetch_weights(commit, config)
        found = [path, weights]
        with contextlib.suppress(_Absent):
            found.append(self.fetch("README.md", commit))
        return found

    def fetch_weights(self, commit: str, config: Config) -> Path:
        absent = []
        for name in WEIGHTS_NAMES:
            try:
                path = self.fetch(name, commit)
            except _Absent as error:
                absent.append(str(error))
                continue
            read_state_dict(path)  # a pickle with code in it is refused here, and not run
            if path.suffix == ".safetensors":
                check_weights(config, path, self.repo_id)
            return path
        raise HubError("; ".join(absent))

    def fetch(self, filename: str, revision: str | None) -> Path:
        """One file in the cache, compared with the Hub's hash of it.

        Raises:
            _Absent: The repository has no such file, or the cache where the Hub is out of reach.
        """
        with hub_errors(filename, self.repo_id, self.token):
            etag = self.ask(filename, revision)
            try:
                path = with_retries(
                    lambda: hf_hub_download(
                        self.repo_id,
                        filename,
                        revision=revision,
                        cache_dir=self.cache_dir,
                        token=self.token,
                        local_files_only=etag is None,
                    )
                )
            except LocalEntryNotFoundError as error:
                text = explain(self.trouble or error, filename, self.repo_id, self.token)
                raise _Absent(str(text)) from error
        check_cached(Path(path), self.repo_id)
        if etag is not None and content_name(Path(path), etag) != etag:
            raise WeightsError(f"{filename} of {self.repo_id} is not what the Hub says it is")
        return Path(path)

    def ask(self, filename: str, revision: str | None) -> str | None:
        """The Hub's hash of a file; None where the file is to be taken from the cache.

        What the Hub calls the file and its commit become names in the cache, so they are read
        before the client reads them.
        """
        if revision is not None and _COMMIT.fullmatch(revision):
            cached = try_to_load_from_cache(
                self.repo_id, filename, cache_dir=self.cache_dir, revision=revision
            )
            if isinstance(cached, str):
                return None
        url = hf_hub_url(self.repo_id, filename, revision=revision)
        try:
            meta = with_retries(lambda: get_hf_file_metadata(url, token=self.token))
        except EntryNotFoundError as error:
            raise _Absent(f"{self.repo_id} has no {filename}") from error
        except HfHubHTTPError as error:
            if error.response.status_code < 500 and error.response.status_code not in BUSY:
                raise
            self.trouble = error
            return None
        except Exception:  # no connection, or offline: which error depends on the HTTP library
            return None
        for name in (meta.etag, meta.commit_hash):
            if name is None or not _NAME.fullmatch(name):
                raise WeightsError(
                    f"the Hub names {filename} of {self.repo_id} {name!r}; accepted are hashes"
                )
        return meta.etag


def _is_empty(path: Path) -> bool:
    return path.is_dir() and not any(path.iterdir())


class _Absent(HubError):
    """There is no such file."""


@contextlib.contextmanager
def _as_it_was(storage: Path) -> Iterator[None]:
    """Take back what was added to a repository's folder in the cache, if this fails.

    Unfinished downloads stay; the client goes on with them where it can.
    """
    before = _contents(storage)
    try:
        yield
    except BaseException:
        for path in _contents(storage).keys() - before.keys():
            if path.suffix != ".incomplete":
                path.unlink(missing_ok=True)
        for path, content in before.items():
            if content is not None and path.read_bytes() != content:
                path.write_bytes(content)
        for folder in sorted(storage.rglob("*"), reverse=True):
            if not folder.is_symlink() and _is_empty(folder):
                folder.rmdir()
        if not before and _is_empty(storage):
            storage.rmdir()
        raise


def _contents(storage: Path) -> dict[Path, bytes | None]:
    """Files and links of a repository in the cache; with what branches and tags stand for."""
    return {
        path: path.read_bytes() if path.is_relative_to(storage / "refs") else None
        for path in storage.rglob("*")
        if path.is_symlink() or path.is_file()
    }
