"""Chat templates that do not end, or build a huge text."""

ENDLESS = {
    "nested loops": "{% for i in range(99999) %}{% for j in range(99999) %}{% endfor %}{% endfor %}",
    "a loop over a text": "{% for i in range(9999) %}{% for c in 'a' * 99999 %}{% endfor %}{% endfor %}",
    "macros": "{% macro f(n) %}{% if n %}{{ f(n - 1) }}{{ f(n - 1) }}{% endif %}{% endmacro %}{{ f(60) }}",
    "a product": "{{ 'a' * 10**10 }}",
    "a product of 10 MB": "{{ 'a' * 10**7 }}",
    "doublings": "{% set n = namespace(x='a') %}{% for i in range(60) %}{% set n.x = n.x ~ n.x %}{% endfor %}",
    "a format": "{{ '%1000000000d' % 1 }}",
    "a method": "{{ 'a'.ljust(10**10) }}",
    "the conversation": "{% for message in messages * 10**9 %}{% endfor %}",
    "long loops": "{% for i in range(99999) %}{{ 'a' * 999999 }}{% endfor %}",
}
