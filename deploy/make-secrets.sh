#!/bin/sh
# Make the secret files docker-compose.yml names, each with 256 random bits; one that is there already is left as it is.
#
# The folder is its owner's alone (0700). The files in it are 0444, because compose hands them to containers with the mode they have
# here, and the users in there are not this one.
set -eu
folder=${1:-$(dirname "$0")/../secrets}
umask 077
mkdir -p "$folder"
chmod 0700 "$folder"

random() {
    od -An -N32 -tx1 /dev/urandom | tr -d ' \n'
}

write() { # NAME TEXT
    if [ -s "$folder/$1" ]; then
        echo "kept     $folder/$1"
    else
        printf '%s\n' "$2" >"$folder/$1.new"
        chmod 0444 "$folder/$1.new"
        mv "$folder/$1.new" "$folder/$1"
        echo "made     $folder/$1"
    fi
}

write postgres_password "$(random)"
write autoft_password "$(random)"
write storage_url "postgresql://autoft:$(cat "$folder/autoft_password")@postgres:5432/autoft"
write ray_token "$(random)"
write dashboard_token "$(random)"
