"""The last fenced block of an answer."""

from __future__ import annotations

import pytest

from qwen3cli.run.fences import last_block


@pytest.mark.parametrize(
    ("answer", "code"),
    [
        ("Try this:\n\n```python\nprint(1)\n```\n\nDone.", "print(1)\n"),
        ("```\na\n```\nor\n```\nb\n```", "b\n"),  # the last one
        ("~~~sh\nls\n~~~", "ls\n"),
        ("~~~\n```\nx\n```\n~~~", "```\nx\n```\n"),  # other fences inside
        ("````md\n```sh\nls\n```\n````\n", "```sh\nls\n```\n"),  # longer than those inside
        ("```\na\n`````\nb", "a\n"),  # closed by a longer one
        ("```\na\n~~~\nb\n```", "a\n~~~\nb\n"),
        ("```\na\n``\nb\n```", "a\n``\nb\n"),
        ("```\na\n```b\nc\n```", "a\n```b\nc\n"),  # what has an info string closes nothing
        ("```\n  a\n\n\tb\n```", "  a\n\n\tb\n"),  # every character stays
        ("``` python title=`x`\n1\n", None),  # backticks behind a fence: code within a line
        ("~~~ a`b`\n1\n~~~", "1\n"),
        ("see ```this```", None),
        ("``\nx\n``", None),
        ("```\n```", ""),  # an empty block is one
        ("", None),
        ("no code at all", None),
        ("```\r\na\r\n```\r\n", "a\n"),
        ("```py\na\n   ```\nb", "a\n"),
        ("```py\na\n    ```\nb\n```", "a\n    ```\nb\n"),  # four columns: a line of the code
        # indented, and in lists
        ("   ```\n   a\n     b\n  c\n   ```", "a\n  b\nc\n"),
        ("1. Do\n\n    ```sh\n    ls\n    ```\n", "ls\n"),
        ("- ```sh\n  ls\n   -l\n  ```\n- more", "ls\n -l\n"),
        ("10. ```\n    a\n\n    b\n    ```", "a\n\nb\n"),
        ("\t```\n\ta\n\t\tb\n\t```", "a\n    b\n"),
        # not closed
        ("So:\n```c\nint x;\nint", "int x;\nint\n"),
        ("```c\nint x;\n\n\n", "int x;\n"),
        ("```\na\n```\n```", "a\n"),  # a fence with nothing behind it
        ("```\na\n```\n```\n\n", "a\n"),
        # Markdown holds blocks of its own
        ("```markdown\n# T\n```sh\nls\n```\nend\n```\nbye", "# T\n```sh\nls\n```\nend\n"),
        ("```md\n- ```sh\n  ls\n  ```\nend\n```", "- ```sh\n  ls\n  ```\nend\n"),
        ("```md\n1.\n    ```sh\n    x\n    ```\nend\n```", "1.\n    ```sh\n    x\n    ```\nend\n"),
    ],
)  # fmt: skip
def test_last_block(answer: str, code: str | None) -> None:
    assert last_block(answer) == code
