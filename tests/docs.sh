#!/usr/bin/env bash
# Checks what the Markdown pages of the repository refer to:
#
#   * a relative link names a file or directory that exists, and its #fragment a heading of that page;
#   * `make VERB` names a verb of the Makefile;
#   * a path in backticks that begins with a directory of the repository exists (patterns and build products aside);
#   * a story in backticks (`module::name_of_the_story`) exists.
#
# Links to other hosts are not followed: a test must not depend on them.
#
#   docs.sh                     all pages of the repository
#   docs.sh --links DIRECTORY   only the links, of the pages below another directory (a package's)
set -euo pipefail
cd "$(dirname "$0")/.."
export LC_ALL=C.UTF-8

work=$(mktemp -d)
trap 'rm -rf -- "$work"' EXIT
wrong=0
complain() {
    echo "docs: $*" >&2
    wrong=1
}

# A page without its fenced blocks.
prose() {
    awk '/^ *(```|~~~)/ { fenced = !fenced; next } !fenced' "$1"
}

# The fragments of a page's headings, as GitHub makes them.
fragments() {
    prose "$1" | sed -n 's/^#\{1,6\} \+//p' | sed -e 's/\[\([^]]*\)\]([^)]*)/\1/g' |
        awk '{
            text = tolower($0)
            gsub(/[^[:alnum:] _-]/, "", text)
            gsub(/ /, "-", text)
            print text (seen[text]++ ? "-" (seen[text] - 1) : "")
        }'
}

check_links() {
    local page=$1 link path fragment
    while read -r link; do
        case $link in
        *://* | mailto:*) continue ;;
        # A file of the system, in a package's page.
        /*) [ "$mode" != --links ] || continue ;;
        esac
        path=${link%%#*}
        fragment=
        [[ $link != *'#'* ]] || fragment=${link#*#}
        if [ -z "$path" ]; then
            path=$page
        else
            path=$(dirname "$page")/$path
        fi
        if [ ! -e "$path" ]; then
            complain "$page: $link leads nowhere"
        elif [ -n "$fragment" ] && ! fragments "$path" | grep -qxF -- "$fragment"; then
            complain "$page: $link: that page has no such heading"
        fi
    done < <(prose "$page" | sed 's/`[^`]*`//g' | grep -o '](\([^)]*\))' | sed -e 's/^](//' -e 's/)$//' -e 's/ ".*"$//')
}

check_verbs() {
    local page=$1 verb
    while read -r verb; do
        grep -q "^$verb:" Makefile || complain "$page: there is no \`make $verb\`"
    done < <(grep -oE '(^ *|`)make [a-z][a-z0-9-]*' "$page" | sed 's/.*make //' | sort -u)
}

# The words in backticks of a page, a line each.
words() {
    prose "$1" | grep -o '`[^`]*`' | tr -d '`' | sort -u || true
}

check_paths() {
    local page=$1 path
    while read -r path; do
        [ -e "${path%/}" ] || complain "$page: $path does not exist"
    done < <(words "$page" | grep -E '^(\.ci|\.github|bench|daemon|dashboards|deploy|docs|findings|shim-proxy|tests)/[A-Za-z0-9_./-]+$' || true)
}

check_stories() {
    local page=$1 story
    while read -r story; do
        grep -qxF -- "${story##*::}" "$work/stories" || complain "$page: there is no story $story"
    done < <(words "$page" | grep -xE '[a-z0-9_]+(::[a-z0-9_]+)*::[a-z0-9]+(_[a-z0-9]+){3,}' || true)
}

mode=${1:-}
count=0
case $mode in
'')
    grep -rhoE 'fn [a-z0-9_]+\(' tests/it tests/e2e --include='*.rs' | sed -e 's/^fn //' -e 's/($//' | sort -u >"$work/stories"
    while IFS= read -r -d '' page; do
        [ -e "$page" ] || continue
        count=$((count + 1))
        check_links "$page"
        check_verbs "$page"
        check_paths "$page"
        check_stories "$page"
    done < <(git ls-files -z --cached --others --exclude-standard '*.md')
    ;;
--links)
    while IFS= read -r -d '' page; do
        count=$((count + 1))
        check_links "$page"
    done < <(find "${2:?the directory}" -name '*.md' -print0)
    ;;
*)
    echo "docs: unknown option $mode: say --links DIRECTORY, or nothing" >&2
    exit 2
    ;;
esac
[ "$count" -gt 0 ] || complain "there is no page"
[ "$wrong" -eq 0 ] || exit 1
echo "docs: $count pages: what they refer to exists"
