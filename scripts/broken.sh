#!/usr/bin/env bash
# Breaks the rules on purpose: applies each patch of tests/broken in a scratch work tree and demands that the test it
# names turns red, by a failing test and not by an error of the compiler.
#
#   scripts/broken.sh                  all patches
#   scripts/broken.sh --share COMMIT   the sixteenth of them that this commit chooses (CI)
#   scripts/broken.sh --only NAME      the patches whose file name contains NAME
#   scripts/broken.sh --check-only     only that each applies, its header is whole, and the table is true (lint)
#   scripts/broken.sh --table          writes the table of rules, tests/broken/README.md
#   scripts/broken.sh --build NAME     no test: builds the binary with that one rule broken, and prints its path
#
# A patch starts with three lines:
#   # rule: election 6, the guard
#   # breaks: the guard always says yes
#   # test: -p tenure --lib the_guard_says_no_at_the_end_of_validity
# The last is what `cargo test` gets; its last word names the test, the words before it the package and the target.
set -euo pipefail
cd "$(dirname "$0")/.."

{ # bash reads a block whole before it runs it: an edit of this file does not reach a run that is going on.
share='' only='' check_only='' build='' table=''
while (($#)); do
  case $1 in
    --share) share=${2:?"--share needs a commit"}; shift 2 ;;
    --only) only=${2:?"--only needs a part of a name"}; shift 2 ;;
    --check-only) check_only=yes; shift ;;
    --table) table=yes; shift ;;
    --build) build=${2:?"--build needs the name of a patch"}; only=$build; shift 2 ;;
    *) echo "scripts/broken.sh: unknown argument $1" >&2; exit 2 ;;
  esac
done

header() { sed -n "s/^# $2: *//p" "$1" | head -n 1; }

shopt -s nullglob
all=(tests/broken/*.patch)
patches=()
# A sixteenth keeps CI short; the last hex digits of the commit choose, so that some commits in a row tend to cover everything.
shares=16
chosen=-1
if [[ -n $share ]]; then
  commit=$(git rev-parse --verify "$share^{commit}")
  chosen=$((16#${commit: -4} % shares))
fi
for i in "${!all[@]}"; do
  if ((chosen < 0 || i % shares == chosen)) && [[ ${all[i]} == *"$only"* ]]; then patches+=("${all[i]}"); fi
done
if ((${#patches[@]} == 0)); then
  echo "no patch of tests/broken is chosen" >&2
  exit 1
fi

for patch in "${patches[@]}"; do
  for field in rule breaks 'test'; do
    [[ -n $(header "$patch" "$field") ]] || { echo "$patch has no line \"# $field: …\"" >&2; exit 1; }
  done
  if [[ -n $check_only ]]; then
    git apply --check "$patch" || { echo "$patch does not apply: make it anew from the code as it is" >&2; exit 1; }
  fi
done

# The rules in order, each with the ways it is broken and the test that notices.
rules() {
  echo '# Rules, and what notices when one is broken'
  echo
  # shellcheck disable=SC2016 # these are marks of the text
  echo 'Written by `scripts/broken.sh --table` from the patches beside this file. `make kills-broken` applies each in a'
  echo 'scratch work tree and demands that its test fails.'
  echo
  echo '| rule | broken on purpose | test that turns red |'
  echo '|---|---|---|'
  for patch in "${all[@]}"; do
    local what
    what=$(header "$patch" 'test')
    echo "| $(header "$patch" rule) | [$(header "$patch" breaks)]($(basename "$patch")) | \`${what##* }\` |"
  done
}
if [[ -n $table ]]; then
  rules >tests/broken/README.md
  exit 0
fi
if [[ -n $check_only ]]; then
  rules | diff tests/broken/README.md - || { echo "tests/broken/README.md is old: scripts/broken.sh --table" >&2; exit 1; }
  echo "${#patches[@]} patches of tests/broken apply"
  exit 0
fi

work=$PWD/target/broken
mkdir -p "$work"
exec 9>"$work/lock"
flock 9
tree=$work/tree
git worktree prune
git worktree remove --force "$tree" 2>/dev/null || rm -rf "$tree"
git worktree add --quiet --detach "$tree" HEAD
trap 'git worktree remove --force "$tree"' EXIT
if [[ -n $(git status --porcelain --untracked-files=no) ]]; then
  echo "note: what is not committed is not in the scratch work tree" >&2
fi
export CARGO_TARGET_DIR=$work/target
# What others have written is the same in the scratch work tree: a copy of what `make test` has made of it spares minutes.
if [[ ! -d $CARGO_TARGET_DIR && -d target/debug/deps ]]; then
  # A copy that is cut off is none. tar ends with 1 where a folder has changed meanwhile, as it does under a build of Tenure
  # beside this one; what is copied does not change.
  rm -rf "$work/copy" && mkdir "$work/copy"
  { tar --create --exclude='*tenure*' --exclude='*trials*' --exclude='*sandbox*' --exclude='debug/deps/it-*' \
    target/debug/.fingerprint target/debug/build target/debug/deps || (($? == 1)); } |
    tar --extract --directory "$work/copy"
  mv "$work/copy/target" "$CARGO_TARGET_DIR" && rmdir "$work/copy"
fi

if [[ -n $build ]]; then
  git -C "$tree" apply "$PWD/tests/broken/$build.patch"
  (cd "$tree" && cargo build --quiet --bin tenure) >&2
  cp "$CARGO_TARGET_DIR/debug/tenure" "$work/tenure-$build"
  echo "$work/tenure-$build"
  exit 0
fi

# In seconds. Everything is built once, within the first; the second is for one package that is built anew and one test: one
# that hangs has not turned red.
build_limit=2400
limit=600
build_tests() {
  local patch what log=$work/build.log
  local -A built
  for patch in "${patches[@]}"; do
    what=$(header "$patch" 'test')
    what=${what% *}
    [[ -z ${built[$what]:-} ]] || continue
    built[$what]=yes
    # shellcheck disable=SC2086 # the arguments are several words
    (cd "$tree" && timeout --kill-after=10 "$build_limit" cargo test --quiet --all-features $what --no-run) >"$log" 2>&1 || {
      echo "the tests of $what cannot be built as they are:" >&2
      tail -n 25 "$log" >&2
      exit 1
    }
  done
}

# Sets `verdict` to red, green, or what else went wrong.
try() {
  local log=$1 args name ran
  read -r -a args <<<"$2"
  name=${args[-1]}
  unset 'args[-1]'
  local status=0
  (cd "$tree" && timeout --kill-after=10 "$limit" cargo test --quiet --all-features "${args[@]}" -- "$name") \
    >"$log" 2>&1 || status=$?
  ran=$(awk '/^running [0-9]+ test/ {n += $2} END {print n + 0}' "$log")
  if ((status == 124)); then verdict="hung"
  elif ! grep -q '^test result:' "$log" && ((ran == 0)); then verdict="did not compile"
  elif ((ran == 0)); then verdict="no such test"
  elif grep -q '^test result: FAILED' "$log"; then verdict="red"
  elif ((status == 0)); then verdict="green"
  else verdict="ended with status $status"
  fi
}

build_tests
# A test that is red anyway shows nothing: it must be green on the code as it is. All of them are run before the code changes
# for the first time, which would build it once more for each.
declare -A sound
for patch in "${patches[@]}"; do
  what=$(header "$patch" 'test')
  [[ -z ${sound[$what]:-} ]] || continue
  try "$work/$(basename "$patch" .patch).before.log" "$what"
  sound[$what]=$verdict
done

failures=0
printf '%-44s %-8s %-16s %6s  %s\n' patch 'as it is' broken seconds rule
for patch in "${patches[@]}"; do
  name=$(basename "$patch" .patch)
  what=$(header "$patch" 'test')
  started=$SECONDS
  rm -f "$work/$name.log"
  before=${sound[$what]}
  if [[ $before != green ]]; then
    verdict="not tried"
  elif git -C "$tree" apply "$PWD/$patch" 2>"$work/$name.log"; then
    try "$work/$name.log" "$what"
    git -C "$tree" checkout --quiet -- .
    git -C "$tree" clean --quiet --force -d
  else
    verdict="does not apply"
  fi
  printf '%-44s %-8s %-16s %6d  %s\n' "$name" "$before" "$verdict" $((SECONDS - started)) "$(header "$patch" rule)"
  if [[ $verdict != red ]]; then
    failures=$((failures + 1))
    log=$work/$name.log
    [[ $before == green ]] || log=$work/$name.before.log
    [[ ! -f $log ]] || tail -n 25 "$log"
  fi
done
echo "${#patches[@]} of ${#all[@]} patches tried, $((${#patches[@]} - failures)) turned their test red, $failures did not"
exit $((failures != 0))
}
