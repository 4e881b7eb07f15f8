#!/bin/sh
# Installs what some tests start: nginx (the proxy is compared with it) and Prometheus (it runs the board's queries). They
# are wanted as programs only: no service is started, now or at the next boot. Where this cannot be done it says what is
# missing, and the tests that need it are skipped.
set -eu

missing=
for pair in nginx:nginx-light prometheus:prometheus promtool:prometheus; do
  program=${pair%%:*}
  package=${pair#*:}
  command -v "$program" >/dev/null || [ -x "/usr/sbin/$program" ] || case " $missing " in
    *" $package "*) ;;
    *) missing="$missing $package" ;;
  esac
done
[ -n "$missing" ] || exit 0

if [ "$(id -u)" != 0 ] || ! command -v apt-get >/dev/null; then
  echo "Tests are skipped that need these packages:$missing. On Debian: apt-get install --no-install-recommends$missing"
  exit 0
fi

echo "Installing$missing, for the tests that start them"
export DEBIAN_FRONTEND=noninteractive
policy=/usr/sbin/policy-rc.d
if [ ! -e "$policy" ]; then
  # Debian's way to say that installing starts nothing: invoke-rc.d(8).
  trap 'rm -f "$policy"' EXIT
  printf '#!/bin/sh\nexit 101\n' >"$policy"
  chmod 755 "$policy"
fi
# shellcheck disable=SC2086 -- one argument per package
if ! { apt-get update -qq && apt-get install -y -qq --no-install-recommends $missing; } </dev/null >/dev/null; then
  echo "apt-get could not install$missing (its message is above)." >&2
  exit 1
fi
for package in $missing; do
  service=${package%-light}
  update-rc.d "$service" disable
  deb-systemd-helper disable "$service.service"
done >/dev/null 2>&1 || true # one of the two systems is not there
