"""Publishes release folders in children of a process that has imported everything already: to be killed at any request.

Reads one folder a line, forks, answers with the pid of the child, waits for a line, lets the child begin, and answers
with its exit code when it has ended.
"""

import os
import sys
from pathlib import Path

from builder.errors import BuilderError
from builder.publish import publish
from builder.release import Release, read_manifest


def main() -> None:
    repo = sys.argv[1]
    for line in sys.stdin:
        begin, let_begin = os.pipe()
        child = os.fork()
        if child == 0:
            os.read(begin, 1)
            path = Path(line.strip())
            try:
                publish(Release(path, read_manifest(path), is_new=False), repo)
            except BuilderError as error:
                print(error, file=sys.stderr)
                os._exit(1)
            os._exit(0)
        print(child, flush=True)
        sys.stdin.readline()
        os.write(let_begin, b".")
        print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), flush=True)
        os.close(begin)
        os.close(let_begin)


if __name__ == "__main__":
    main()
