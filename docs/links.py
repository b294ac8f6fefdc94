"""Follows every link of the built site to a file of it: python docs/links.py docs/_build/html/index.html

It is LinkChecker, which as root turns itself into the user nobody (10.6, command/linkchecker.py), who may be unable to
read the site or the packages. So it is not told that it is root; to be deleted when it has an option for that.
"""

import os

os.geteuid = lambda: 1

from linkcheck.command.linkchecker import linkchecker  # noqa: E402

if __name__ == "__main__":
    linkchecker()
