#!/usr/bin/env bash
# What a container of Millrace needs and nothing else: the binary, the libraries it is linked with, certificates, and of each Debian
# package that they came from its licence and its version (where scanners look for it).
#
#   docker/runtime_root.sh BINARY FOLDER        FOLDER must not be there
set -euo pipefail
binary=$1 root=$2
certificates=/etc/ssl/certs/ca-certificates.crt
[ -e "$root" ] && { echo "$0: $root is there already" >&2; exit 1; }
[ -f "$certificates" ] || { echo "$0: no $certificates: install ca-certificates" >&2; exit 1; }
install -d "$root"/{etc/ssl/certs,usr/bin,usr/lib/ssl,usr/share/doc,var/lib/dpkg/status.d,tmp,models}
chmod 1777 "$root/tmp"
strip -o "$root/usr/bin/millrace" "$binary"
install -m 644 "$certificates" "$root/etc/ssl/certs/"
ln -s "$certificates" "$root/usr/lib/ssl/cert.pem" # where OpenSSL looks; libcurl takes the first
printf 'root:x:0:0::/:/nonexistent\nmillrace:x:10001:10001::/var/lib/millrace:/nonexistent\n' > "$root/etc/passwd"
printf 'root:x:0:\nmillrace:x:10001:\n' > "$root/etc/group"
install -d -m 0750 "$root/var/lib/millrace"
[ "$(id -u)" != 0 ] || chown 10001:10001 "$root/var/lib/millrace"

packages=" ca-certificates "
while read -r library; do # by the names that the loader will ask for
    install -D -m 755 "$(readlink -f "$library")" "$root$library"
    package=$(dpkg -S "$(readlink -f "$library")" 2>/dev/null || dpkg -S "$(readlink -f "$library" | sed s,^/usr,,)")
    package=${package%%:*}
    [[ $packages == *" $package "* ]] || packages+="$package "
done < <(ldd "$binary" | grep -o '/[^ ]*')
for package in $packages; do
    install -D -m 644 "/usr/share/doc/$package/copyright" "$root/usr/share/doc/$package/copyright"
    dpkg-query -s "$package" > "$root/var/lib/dpkg/status.d/$package"
done
