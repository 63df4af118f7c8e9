r"""What a secret in a command line looks like: tables, without the code that uses them (`redact.find`).

Four kinds, by how a secret is known:

- `SHAPES`: it has a form that its issuer has published, or that is known from public scanners; wherever it stands;
- `ENDINGS`: an option, a variable, a header or a JSON key has a name that says so: ``--db-password``, ``API_KEY=``;
- `FORMS`: the program takes it by an option or at a place of its own: ``mysql -p…``, ``curl -u user:…``;
- `TEXTS`: what stands before it says so: ``Authorization: Bearer …``, ``-----BEGIN PRIVATE KEY-----``.

Arguments are hostile and long, and Python's `re` backtracks. So a pattern here has no repeat within a repeat, and an
unbounded repeat only of one set of characters, with nothing after it that could fail; a shape begins where no letter or
digit stands before it, so that each character is looked at a bounded number of times. A test reads the patterns and
holds them to that.
"""

from __future__ import annotations

import re
from enum import Enum
from typing import Final, NamedTuple

MARK: Final = "*****"
"""What stands in the place of a secret: Tetragon's (``pkg/fieldfilters/redaction.go``), and never as long as it."""


class Shape(NamedTuple):
    """A form of secret that is recognised by itself."""

    name: str
    words: tuple[str, ...]
    """One of these is in it, in lower case: to look for a word is much faster than for a pattern."""
    pattern: str
    """Of the whole secret. It begins with one letter, or with one set of them."""
    source: str
    """Where the form is described."""

    def compiled(self) -> re.Pattern[str]:
        """The pattern, where no letter or digit stands before it.

        Which is asked behind the first letter, since `re` searches fast for one and slowly for what is not there. For a
        JWT it keeps a long run of ``eyJ`` from being read again from each of them.
        """
        begin = self.pattern.index("]") + 1 if self.pattern[0] == "[" else 1
        first, rest = self.pattern[:begin], self.pattern[begin:]
        return re.compile(f"{first}(?<![A-Za-z0-9]{first}){rest}")


_GITLEAKS: Final = "https://github.com/gitleaks/gitleaks/blob/master/config/gitleaks.toml"

SHAPES: Final = (
    Shape(
        "aws-key-id",
        ("akia", "asia", "abia", "acca"),
        r"A(?:KIA|SIA|BIA|CCA)[A-Z0-9]{16}",
        "https://docs.aws.amazon.com/IAM/latest/UserGuide/reference_identifiers.html#identifiers-unique-ids",
    ),
    Shape(
        "github-token",
        ("gh",),
        r"gh[pousr]_[A-Za-z0-9_]{20,}",
        "https://github.blog/changelog/2021-03-31-authentication-token-format-updates-are-generally-available/",
    ),
    Shape(
        "github-token", ("github_pat_",), r"github_pat_[A-Za-z0-9_]{20,}", "https://docs.github.com/en/authentication"
    ),
    Shape(
        "gitlab-token",
        ("gl",),
        r"gl(?:pat|dt|rt|cbt|ptt|ft|imt|agent|oas|ffct|soat)-[A-Za-z0-9_.-]{20,}",
        "https://docs.gitlab.com/security/tokens/#token-prefixes",
    ),
    Shape("slack-token", ("xox",), r"xox[a-z]-[A-Za-z0-9-]{10,}", "https://api.slack.com/authentication/token-types"),
    Shape(
        "slack-token", ("xapp-",), r"xapp-[0-9]-[A-Za-z0-9-]{10,}", "https://api.slack.com/authentication/token-types"
    ),
    Shape(
        "stripe-key",
        ("k_live_", "k_test_", "k_prod_"),
        r"[sr]k_(?:live|test|prod)_[A-Za-z0-9]{10,}",
        "https://docs.stripe.com/keys",
    ),
    Shape("stripe-key", ("whsec_",), r"whsec_[A-Za-z0-9+/=]{16,}", "https://docs.stripe.com/webhooks"),
    Shape(
        "google-api-key", ("aiza",), r"AIza[A-Za-z0-9_-]{35}", "https://cloud.google.com/docs/authentication/api-keys"
    ),
    Shape("google-oauth-token", ("ya29.",), r"ya29\.[A-Za-z0-9_-]{16,}", _GITLEAKS),
    Shape("google-oauth-secret", ("gocspx-",), r"GOCSPX-[A-Za-z0-9_-]{20,}", _GITLEAKS),
    Shape(
        "npm-token",
        ("npm_",),
        r"npm_[A-Za-z0-9]{36}",
        "https://github.blog/changelog/2021-09-23-npm-has-a-new-access-token-format/",
    ),
    Shape("pypi-token", ("pypi-",), r"pypi-[A-Za-z0-9_-]{32,}", "https://pypi.org/help/#apitoken"),
    Shape("rubygems-key", ("rubygems_",), r"rubygems_[0-9a-f]{48}", "https://guides.rubygems.org/api-key-scopes/"),
    Shape(
        "ai-key",
        ("sk-",),
        r"sk-(?:ant-|proj-|svcacct-|admin-|or-)[A-Za-z0-9_-]{16,}",
        "https://docs.claude.com/en/api/overview",
    ),
    Shape("ai-key", ("sk-",), r"sk-[A-Za-z0-9]{20,}", "https://platform.openai.com/docs/api-reference/authentication"),
    Shape("ai-key", ("gsk_", "xai-", "pplx-", "nvapi-"), r"[gxpn](?:sk_|ai-|plx-|vapi-)[A-Za-z0-9_-]{32,}", _GITLEAKS),
    Shape("huggingface-token", ("hf_",), r"hf_[A-Za-z0-9]{30,}", "https://huggingface.co/docs/hub/security-tokens"),
    Shape("sendgrid-key", ("sg.",), r"SG\.[A-Za-z0-9_-]{16,32}\.[A-Za-z0-9_-]{16,}", _GITLEAKS),
    Shape(
        "docker-token",
        ("dckr_",),
        r"dckr_(?:pat|oat)_[A-Za-z0-9_-]{20,}",
        "https://docs.docker.com/security/access-tokens/",
    ),
    Shape("digitalocean-token", ("_v1_",), r"do[opr]_v1_[0-9a-f]{40,}", "https://docs.digitalocean.com/reference/api/"),
    Shape(
        "vault-token",
        ("hvs.", "hvb.", "hvr."),
        r"hv[sbr]\.[A-Za-z0-9_-]{20,}",
        "https://developer.hashicorp.com/vault/docs/concepts/tokens",
    ),
    Shape("terraform-token", (".atlasv1.",), r"[A-Za-z0-9][A-Za-z0-9]{13}\.atlasv1\.[A-Za-z0-9_=-]{40,}", _GITLEAKS),
    Shape("shopify-token", ("shp",), r"shp(?:at|ss|ca|pa)_[0-9a-fA-F]{32}", _GITLEAKS),
    Shape(
        "grafana-token",
        ("glsa_", "glc_"),
        r"gl(?:sa|c)_[A-Za-z0-9_+/=]{32,}",
        "https://grafana.com/docs/grafana/latest/administration/service-accounts/",
    ),
    Shape("databricks-token", ("dapi",), r"dapi[0-9a-f]{32}", _GITLEAKS),
    Shape("postman-key", ("pmak-",), r"PMAK-[0-9a-f]{24}-[0-9a-f]{34}", _GITLEAKS),
    Shape("heroku-key", ("hrku-",), r"HRKU-[A-Za-z0-9_-]{36,}", _GITLEAKS),
    Shape("atlassian-token", ("atatt3",), r"ATATT3[A-Za-z0-9_=-]{40,}", _GITLEAKS),
    Shape("doppler-token", ("dp.",), r"dp\.(?:pt|st|ct|sa|scim|audit)\.[A-Za-z0-9_.-]{40,}", _GITLEAKS),
    Shape(
        "sentry-token", ("sntry",), r"sntry[su]_[A-Za-z0-9+/=_-]{40,}", "https://docs.sentry.io/account/auth-tokens/"
    ),
    Shape(
        "tailscale-key", ("tskey-",), r"tskey-[a-z]{2,12}-[A-Za-z0-9-]{16,}", "https://tailscale.com/kb/1085/auth-keys"
    ),
    Shape(
        "telegram-token",
        (":aa",),
        r"[0-9][0-9]{7,9}:AA[A-Za-z0-9_-]{32,}",
        "https://core.telegram.org/bots/api#authorizing-your-bot",
    ),
    Shape("age-key", ("age-secret-key",), r"AGE-SECRET-KEY-1[0-9A-Z]{58}", "https://age-encryption.org/v1"),
    Shape("linear-key", ("lin_api_",), r"lin_api_[A-Za-z0-9]{40}", _GITLEAKS),
    Shape("pulumi-token", ("pul-",), r"pul-[0-9a-f]{40}", _GITLEAKS),
    Shape("planetscale-password", ("pscale_",), r"pscale_(?:pw|tkn|oauth)_[A-Za-z0-9_=.-]{32,}", _GITLEAKS),
    Shape("square-token", ("sq0atp-",), r"sq0atp-[A-Za-z0-9_-]{22,}", _GITLEAKS),
    Shape(
        "azure-secret",
        ("q~",),
        r"[A-Za-z0-9_~.][A-Za-z0-9_~.]{2}[0-9]Q~[A-Za-z0-9_~.-]{31,34}",
        _GITLEAKS,
    ),
    Shape(
        "jwt",
        ("eyj",),
        r"eyJ[A-Za-z0-9_-]{8,4096}\.eyJ[A-Za-z0-9_-]{8,16384}(?:\.[A-Za-z0-9_-]*)?",
        "https://www.rfc-editor.org/rfc/rfc7519",
    ),
)

# Names.

ENDINGS: Final = (
    "password",
    "passwd",
    "passwort",
    "passphrase",
    "passcode",
    "pass",
    "pwd",
    "psk",
    "secret",
    "token",
    "apikey",
    "accesskey",
    "secretkey",
    "authkey",
    "accountkey",
    "encryptionkey",
    "masterkey",
    "signingkey",
    "privatekey",
    "sharedkey",
    "sharedaccesskey",
    "primarykey",
    "storagekey",
    "licensekey",
    "licencekey",
    "credential",
    "credentials",
    "creds",
)
"""A name that ends so, without ``-``, ``_``, ``.``, ``:`` and digits at its end, is a secret's."""

HARMLESS_ENDINGS: Final = (
    # Words that happen to end like a secret.
    "bypass",
    "compass",
    "trespass",
    "encompass",
    "highpass",
    "lowpass",
    "bandpass",
    "allpass",
    "subpass",
    "renderpass",
    "multipass",
    "onepass",
    "twopass",
    "firstpass",
    "lastpass",
    "secondpass",
    "finalpass",
    "numpass",
    "proxypass",
    # Places in a list of results, and what makes a request be done once.
    "nexttoken",
    "pagetoken",
    "startingtoken",
    "continuationtoken",
    "continuetoken",
    "idempotencytoken",
    "clienttoken",
    "clientrequesttoken",
    # What a language model calls a token.
    "maxtoken",
    "mintoken",
    "eostoken",
    "bostoken",
    "padtoken",
    "unktoken",
    "masktoken",
    "septoken",
    "stoptoken",
    "specialtoken",
    # Names of objects in Kubernetes that hold a secret.
    "pullsecret",
    "tlssecret",
    "existingsecret",
    "certificatesecret",
    "configsecret",
)
"""A name that ends so is none, whatever `ENDINGS` says."""

SWITCH_PREFIX: Final = re.compile(
    r"(?:no|without|with|enable|disable|use|ask|prompt|require|show|print|hide|generate|create|delete|revoke|rotate|list"
    r"|reset|skip|allow)[-_]",
)
"""An option that begins so, and has no ``=``, takes no value: ``--no-password``, ``--with-token``."""

HARMLESS_VALUE: Final = re.compile(
    r"(?:"
    r"true|false|yes|no|on|off|none|null|nil|undefined|prompt|ask|stdin|required|optional|disabled?|enabled?"
    r"|[0-9]?"
    r"|[*xX.]{1,64}"
    r"|(?:file|fd|env|stdin|keyring|vault|ssm|arn|secretsmanager|op|kms|gopass):.{0,4096}"
    r"|@[./~][^\s]{0,4096}"
    r"|(?:id|type|src|source|target|env|name)=.{0,4096}"
    r"|(?:\.{1,2}|~)/.{0,4096}"
    r"|/(?:bin|certs?|config|credentials|data|dev|etc|home|keys?|media|mnt|opt|private|proc|root|run|secrets?|srv|sys|tmp"
    r"|usr|var|vault|vol|workdir|workspace|app|builds|Users)(?:/.{0,4096})?"
    r")",
    re.DOTALL | re.ASCII | re.IGNORECASE,
)
"""What stands where a secret could, and only says where it is, or that there is none. So does a file's name:"""
FILE_NAME: Final = re.compile(r"[\w./+-]{1,1024}", re.ASCII)
FILE_SUFFIXES: Final = frozenset(
    (
        *("pem", "key", "crt", "cert", "cer", "der", "pub", "p12", "pfx", "jks", "gpg", "asc"),
        *("json", "yaml", "yml", "toml", "ini", "conf", "cfg", "env", "txt", "htm", "html", "md"),
    )
)

SHELL_REFERENCE: Final = re.compile(
    r"\"?\$(?:[A-Za-z_][A-Za-z0-9_]{0,255}|[0-9@*#?]|\{[^}\"]{1,255}\}|\([^\"]{1,4096}\)?)\"?"
)
"""In a script: a variable, whose value the script does not tell."""


# Programs.


class Part(Enum):
    """Which part of an option's value is the secret."""

    WHOLE = "the whole value"
    AFTER_COLON = "what follows the first colon"
    AFTER_PERCENT = "what follows the first percent sign"
    AFTER_COMMA = "what follows the first comma"
    AFTER_EQUALS = "what follows the first equals sign"


class Form(NamedTuple):
    """How some programs take a secret by an option."""

    programs: tuple[str, ...]
    options: tuple[str, ...]
    part: Part = Part.WHOLE
    separate: bool = True
    """The value may be the next argument."""
    attached: bool = True
    """The value of a short option may follow it directly: ``-pX``. (That of a long one may always follow ``=``.)"""
    after: tuple[str, ...] = ()
    """Only after one of these words."""
    cluster: str = ""
    """Options without a value that may stand before the letter of a short one, as in ``-su``."""


class Place(NamedTuple):
    """How some programs take a secret without an option: so many words after a certain one."""

    programs: tuple[str, ...]
    word: str
    """In lower case."""
    skip: int = 0


_MYSQL: Final = (
    "mysql",
    "mysqladmin",
    "mysqlbinlog",
    "mysqlcheck",
    "mysqldump",
    "mysqlimport",
    "mysqlpump",
    "mysqlshow",
    "mysqlslap",
    "mysqlsh",
    "mysql_upgrade",
    "mariadb",
    "mariadb-admin",
    "mariadb-backup",
    "mariadb-binlog",
    "mariadb-check",
    "mariadb-dump",
    "mariadb-import",
    "mariadb-show",
    "mariadb-slap",
    "mydumper",
    "xtrabackup",
)
_SNMP: Final = (
    "snmpwalk",
    "snmpget",
    "snmpset",
    "snmpbulkwalk",
    "snmpbulkget",
    "snmpgetnext",
    "snmptrap",
    "snmptable",
    "snmpstatus",
)
_MONGO: Final = ("mongo", "mongosh", "mongodump", "mongorestore", "mongoexport", "mongoimport", "mongostat", "mongotop")
_LDAP: Final = (
    "ldapsearch",
    "ldapadd",
    "ldapmodify",
    "ldapdelete",
    "ldapwhoami",
    "ldapcompare",
    "ldapmodrdn",
    "ldappasswd",
    "ldapexop",
)
_SAMBA: Final = (
    "smbclient",
    "rpcclient",
    "net",
    "smbget",
    "smbtree",
    "smbcacls",
    "smbspool",
    "wbinfo",
    "samba-tool",
    "winexe",
    "pth-winexe",
)
_REGISTRY: Final = (
    "docker",
    "podman",
    "nerdctl",
    "buildah",
    "skopeo",
    "oras",
    "crane",
    "helm",
    "az",
    "oc",
    "cf",
    "ibmcloud",
    "regctl",
    "jf",
)

FORMS: Final = (
    Form(("sshpass",), ("-p",)),
    Form(_MYSQL, ("-p",), separate=False),
    Form(
        ("curl",),
        ("-u", "--user", "-U", "--proxy-user", "-E", "--cert", "--proxy-cert"),
        Part.AFTER_COLON,
        cluster="#0123456789afgGiIjJklLnNOpqRsSvZ",
    ),
    Form(("curl",), ("--oauth2-bearer",)),
    Form(("curl",), ("-b", "--cookie"), Part.AFTER_EQUALS, cluster="#0123456789afgGiIjJklLnNOpqRsSvZ"),
    Form(("http", "https", "httpie", "xh", "xhs", "curlie"), ("-a", "--auth"), Part.AFTER_COLON),
    Form(("redis-cli", "valkey-cli", "keydb-cli", "redis-benchmark"), ("-a",)),
    Form(_LDAP, ("-w",)),
    Form(("ldappasswd",), ("-s", "-a")),
    Form(_REGISTRY, ("-p",), after=("login",)),
    Form(_REGISTRY, ("--creds", "--src-creds", "--dest-creds"), Part.AFTER_COLON),
    Form(("7z", "7za", "7zr", "7zz", "rar", "unrar"), ("-p",), separate=False),
    Form(("rar", "unrar"), ("-hp",), separate=False),
    Form(("zip", "unzip", "zipcloak"), ("-P",)),
    Form(_MONGO, ("-p",)),
    Form(("sqlcmd", "bcp", "isql", "tsql", "osql"), ("-P",)),
    Form(_SAMBA, ("-U", "--user"), Part.AFTER_PERCENT),
    Form(("rdesktop", "cqlsh", "ncftp", "ncftpget", "ncftpput", "twine", "evil-winrm", "hydra"), ("-p",)),
    Form(("xfreerdp", "xfreerdp3", "wlfreerdp"), ("/p:",), separate=False),
    Form(_SNMP, ("-A", "-X", "-c")),
    Form(("ipmitool", "mosquitto_pub", "mosquitto_sub", "mosquitto_rr", "mosquitto_passwd"), ("-P",)),
    Form(("lftp",), ("-u", "--user"), Part.AFTER_COMMA),
    Form(("ssh-keygen",), ("-N", "-P")),
    Form(("useradd", "usermod", "groupadd", "adduser"), ("-p",)),
    Form(("plink", "pscp", "psftp"), ("-pw",), attached=False),
    Form(("openssl",), ("-k", "-K"), attached=False),
    Form(("gh",), ("-b", "--body"), after=("secret",)),
    Form(("kubectl", "oc"), ("--from-literal",), Part.AFTER_EQUALS, after=("secret",)),
    Form(("influx",), ("-t",)),
)

PLACES: Final = (
    Place(("rabbitmqctl",), "add_user", 1),
    Place(("rabbitmqctl",), "change_password", 1),
    Place(("rabbitmqctl",), "authenticate_user", 1),
    Place(("nmcli", "mysqladmin", "mariadb-admin"), "password"),
    Place(("redis-cli", "valkey-cli", "keydb-cli"), "auth"),
    Place(("vault",), "login"),
    Place(("iwconfig",), "key"),
    Place(("wpa_passphrase",), "wpa_passphrase", 1),
    Place(("rclone",), "obscure"),
)

LAST_AFTER_B: Final = frozenset({"htpasswd", "htdigest"})
"""With ``-b`` the password is their last argument."""

LOGIN_FIRST: Final = frozenset({"sqlplus", "expdp", "impdp", "exp", "imp", "rman", "sqlldr"})
"""Oracle's, which take ``user/password@database``."""
LOGIN: Final = re.compile(r"(?:userid=)?[A-Za-z][\w$#.]{0,127}/([^@/\s]{1,255})(?:@|$)")

PROGRAMS: Final = frozenset(
    {program for form in FORMS for program in form.programs}
    | {program for place in PLACES for program in place.programs}
    | LAST_AFTER_B
    | LOGIN_FIRST
)

SETS: Final = frozenset({"set", "--global", "--local", "--system", "--add"})
"""``npm config set NAME VALUE``: after one of these a name that is a secret's has its value in the next argument."""

TELLS: Final = frozenset({"git", "hg", "svn", "gh", "glab", "jj", "logger", "mail", "notify-send"})
"""Programs that take prose after one of `MESSAGES`."""
MESSAGES: Final = frozenset({"-m", "-am", "--message", "--title", "--body", "--subject", "--notes", "--description"})
"""What follows is prose, in which an option is a word like any other."""


# Texts.


class Until(Enum):
    """How far a secret goes that a text announces."""

    LINE = "to the end of the line, or of the quotation that it stands in"
    QUOTE = "to the closing quotation mark"
    WORD = "to the next blank or quotation mark"
    KEY = "to the end of the key"
    MATCH = "the group that matched"


class Text(NamedTuple):
    """A secret that is announced by what stands before it."""

    name: str
    words: tuple[str, ...]
    """One of these is in the text, in lower case."""
    pattern: str
    until: Until


TEXTS: Final = (
    Text(
        "header",
        ("authorization",),
        r"(?i)(?<![A-Za-z0-9-])(?:proxy-)?authorization[\"']?[ \t]{0,4}[:=][ \t]{0,4}[\"']?"
        r"(?:(?:basic|bearer|token|digest|apikey|negotiate|ntlm|ssws|splunk|aws4-hmac-sha256|key|bot|geniekey)"
        r"(?:[ \t]{1,4}|$))?",
        Until.LINE,
    ),
    Text(
        "header",
        ("cookie",),
        r"(?i)(?<![A-Za-z0-9-])(?:set-)?cookie[\"']?[ \t]{0,4}:[ \t]{0,4}[\"']?",
        Until.LINE,
    ),
    Text(
        "header",
        ("key", "token", "secret", "password"),
        r"(?i)(?<![A-Za-z0-9/-])(?:x-|api-|private-|job-|deploy-|dd-|circle-|auth-|access-|app-|client-|user-)[a-z-]{0,40}"
        r"(?:key|token|secret|password)[\"']?[ \t]{0,4}:[ \t]{0,4}[\"']?",
        Until.LINE,
    ),
    Text("bearer", ("bearer",), r"(?i)(?<![A-Za-z0-9])bearer[ \t]{1,4}", Until.WORD),
    Text("private-key", ("private key",), r"-----BEGIN [A-Z0-9 ]{0,40}PRIVATE KEY(?: BLOCK)?-----", Until.KEY),
    Text("openssl-pass", ("pass:",), r"(?<![A-Za-z0-9_:/.-])pass:", Until.WORD),
    Text(
        "sql-password",
        ("password", "identified"),
        r"(?i)(?:identified[ \t]{1,4}(?:with[ \t]{1,4}\w{1,40}[ \t]{1,4})?(?:by|as)(?:[ \t]{1,4}password)?"
        r"|(?:with|encrypted)[ \t]{1,4}password|(?:user|role|login)[ \t]{1,4}[^\s]{1,128}[ \t]{1,4}password"
        r"|set[ \t]{1,4}password[ \t]{0,4}=|password[ \t]{0,4}(?:=[ \t]{0,4})?\()[ \t]{0,4}(?=[\"'\\])",
        Until.QUOTE,
    ),
    Text(
        "signature", ("sig=", "signature="), r"(?i)[?&;](?:sig|signature|x-amz-signature|x-goog-signature)=", Until.WORD
    ),
    Text("webhook", ("hooks.slack.com",), r"hooks\.slack\.com/(?:services|workflows|triggers)/", Until.WORD),
    Text("webhook", ("api/webhooks",), r"discord(?:app)?\.com/api/webhooks/[0-9]{5,25}/", Until.WORD),
    Text("url-token", ("@",), r"://([A-Za-z0-9_-]{20,512})@", Until.MATCH),
    Text(
        "piped-password",
        ("echo ", "printf "),
        r"(?:echo|printf)[ \t]{1,4}(?:-[neE]{1,3}[ \t]{1,4})?"
        r"(?:\"([^\"]{1,200})\"|'([^']{1,200})'|([^\s|;&\"']{1,200}))[ \t]{0,4}\|",
        Until.MATCH,
    ),
)

USERINFO: Final = re.compile(r"://[^\s/?#@:\"'\\]{0,256}:")
"""``scheme://user:``; what follows up to an ``@`` is a password."""

KEYWORD: Final = re.compile(
    r"(?i)(?:password|passwd|passwort|passphrase|passcode|pass|pwd|psk|secret|token|key|credentials?|creds)"
    r"(?:[_-]?[0-9]{1,3})?"
    r"(\\{0,3}[\"']?[ \t]{0,3}(?::=|=>|[:=])[ \t]{0,3})"
)
"""A name's end, and what stands between it and its value in JSON, YAML, forms and connection strings."""


# What is worth a closer look.

_NAME_ENDS: Final = "(?![_.-]?[a-z])"

TRIGGER: Final = re.compile(
    rf"p(?:ass(?:w(?:or[dt]|d)|phrase|code|){_NAME_ENDS}|wd{_NAME_ENDS}|sk{_NAME_ENDS}"
    r"|assw(?=ord-stdin)|ass(?=phrase-fd)|at_|m_|ypi-|(?<=lin_ap)i_|ul-[0-9a-f]{40}|scale_|(?<=sq0atp)-|(?<=dp)\.|(?<=dap)i[0-9a-f]{32}|(?<=shp)(?:ss|ca|pa)_)"
    rf"|k(?:ey{_NAME_ENDS}|(?<=tok)en{_NAME_ENDS}|(?<=ak)ia[0-9a-z]{{16}}|(?<=[sr]k)(?<![a-z0-9][sr]k)[_-]|(?<=gsk)_"
    r"|(?<=cook)ie[\"' ]{0,4}:|(?<=hook)s[./]|(?<=pmak)-|(?<=hrk)u-|(?<=dck)r_o|(?<=-secret-k)ey-|(?<=tsk)ey-"
    r"|(?<=private k)ey)"
    rf"|c(?:ret{_NAME_ENDS}|red(?:ential)?s?{_NAME_ENDS}|ca[0-9a-z]{{16}}|(?<=whsec)_)"
    rf"|u(?<=_au)th{_NAME_ENDS}"
    r"|z(?:(?<=aiz)a|(?<=authoriz)ation[\"' \t]{0,6}[:=])"
    r"|b(?:earer[ \t]|ia[0-9a-z]{16})"
    r"|f(?:(?<=hf)_|(?<=identif)ied|rom-literal)"
    r"|g(?:h[pousr]_|l(?:pat|dt|rt|cbt|ptt|ft|imt|agent|oas|ffct|soat)-|l(?:sa|c)_|(?<=sg)\.|(?<=sig)(?:nature)?=|ocspx"
    r"|(?<=rubyg)ems_)"
    r"|j(?<=eyj)"
    r"|x(?:ox[a-z]-|app-|ai-|(?<=pplx)-)"
    r"|v(?:(?<=hv)[sbr]\.|(?<=_v)1_|(?<=atlasv)1|api-)"
    r"|y(?:a29|(?<=sntry)[su]_)"
    r"|3(?<=atatt3)"
    r"|~(?<=[0-9]q~)"
    r"|:(?:aa|//[^\s\"']{1,512}@)"
)
"""In a text in lower case: without one of these in any of its arguments, and without one of `PROGRAMS`, a command line
holds nothing that a rule here finds. Each alternative begins with the least frequent letter that it has, because the
search stops at each of those, and looks back from there. (``ASIA`` has none; it is looked for by itself.)"""

READS_PASSWORD: Final = frozenset(
    {
        "--password-stdin",
        "--pass-stdin",
        "--passphrase-fd",
        "--stdin",
        "--with-token",
        "chpasswd",
        "passwd",
        "smbpasswd",
        "kinit",
        "cryptsetup",
    }
)
"""Words in the command behind a pipe that make it read a password from there; beside ``sudo -S``."""
