"""Chat templates in the manner of well-known families, in words of our own: small, and each with its family's way of losing a turn."""

from __future__ import annotations

from collections.abc import Mapping

# A branch for each role it knows and none for others; a system prompt of its own where there is none.
QWEN = """\
{%- if messages[0].role == 'system' %}{{ '<|im_start|>system\\n' + messages[0].content + '<|im_end|>\\n' }}
{%- else %}{{ '<|im_start|>system\\nYou are helpful.<|im_end|>\\n' }}{% endif %}
{%- for message in messages %}
    {%- if message.role == 'user' or (message.role == 'system' and not loop.first) %}
        {{- '<|im_start|>' + message.role + '\\n' + message.content + '<|im_end|>\\n' }}
    {%- elif message.role == 'assistant' %}
        {%- set said = message.content %}
        {%- if '</think>' in said and not loop.last %}{% set said = said.split('</think>')[-1].lstrip('\\n') %}{% endif %}
        {{- '<|im_start|>assistant\\n' + said + '<|im_end|>\\n' }}
    {%- elif message.role == 'tool' %}
        {{- '<|im_start|>user\\n<tool_response>\\n' + message.content + '\\n</tool_response><|im_end|>\\n' }}
    {%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}
"""

LLAMA_2 = """\
{%- if messages[0].role == 'system' %}{% set system = '<<SYS>>\\n' + messages[0].content.strip() + '\\n<</SYS>>\\n\\n' %}{% set turns = messages[1:] %}
{%- else %}{% set system = '' %}{% set turns = messages %}{% endif %}
{%- for message in turns %}
    {%- if message.role == 'user' %}{{ bos_token + '[INST] ' + (system if loop.first else '') + message.content.strip() + ' [/INST]' }}
    {%- elif message.role == 'assistant' %}{{ ' ' + message.content.strip() + ' ' + eos_token }}
    {%- endif %}
{%- endfor %}
"""

# Any role is printed.
LLAMA_3 = """\
{{- bos_token }}
{%- for message in messages %}
    {{- '<|start_header_id|>' + message.role + '<|end_header_id|>\\n\\n' + message.content | trim + '<|eot_id|>' }}
{%- endfor %}
{%- if add_generation_prompt %}{{ '<|start_header_id|>assistant<|end_header_id|>\\n\\n' }}{% endif %}
"""

# The system prompt goes into the last question; roles must alternate.
MISTRAL = """\
{%- if messages[0].role == 'system' %}{% set system = messages[0].content + '\\n\\n' %}{% set turns = messages[1:] %}
{%- else %}{% set system = '' %}{% set turns = messages %}{% endif %}
{{- bos_token }}
{%- for message in turns %}
    {%- if (message.role == 'user') != (loop.index0 % 2 == 0) %}{{ raise_exception('Roles must alternate.') }}{% endif %}
    {%- if message.role == 'user' %}{{ '[INST] ' + (system if loop.last else '') + message.content + '[/INST]' }}
    {%- else %}{{ ' ' + message.content + eos_token }}
    {%- endif %}
{%- endfor %}
"""

# The system prompt before the first question; content as string or as parts.
GEMMA = """\
{{- bos_token }}
{%- if messages[0].role == 'system' %}
    {%- set prefix = (messages[0].content if messages[0].content is string else messages[0].content[0].text) + '\\n\\n' %}
    {%- set turns = messages[1:] %}
{%- else %}{% set prefix = '' %}{% set turns = messages %}{% endif %}
{%- for message in turns %}
    {%- if (message.role == 'user') != (loop.index0 % 2 == 0) %}{{ raise_exception('Roles must alternate.') }}{% endif %}
    {{- '<|im_start|>' + ('model' if message.role == 'assistant' else message.role) + '\\n' + (prefix if loop.first else '') }}
    {%- if message.content is string %}{{ message.content | trim }}
    {%- else %}{% for part in message.content %}{% if part.type == 'text' %}{{ part.text | trim }}{% endif %}{% endfor %}{% endif %}
    {{- '<|im_end|>\\n' }}
{%- endfor %}
{%- if add_generation_prompt %}{{ '<|im_start|>model\\n' }}{% endif %}
"""

# Knows user and assistant alone.
PHI_3 = """\
{{- bos_token }}
{%- for message in messages %}
    {%- if message.role == 'user' %}{{ '<|user|>\\n' + message.content + '<|end|>\\n<|assistant|>\\n' }}
    {%- elif message.role == 'assistant' %}{{ message.content + '<|end|>\\n' }}
    {%- endif %}
{%- endfor %}
"""

# Parts alone: a string is looped over letter by letter, and a letter has no text.
GLM = """\
{%- macro text_of(content) %}{% for part in content %}{% if part.type == 'text' %}{{ part.text }}{% endif %}{% endfor %}{% endmacro %}
{%- for message in messages %}
    {%- if message.role == 'system' %}{{ '<|system|>\\n' + text_of(message.content) }}
    {%- elif message.role == 'user' %}{{ '<|user|>\\n' + text_of(message.content) }}
    {%- elif message.role == 'assistant' %}{{ '<|assistant|>\\n' + text_of(message.content).split('</think>')[-1] | trim }}
    {%- elif message.role == 'tool' %}{{ '<|user|>\\n' + text_of(message.content) | tojson }}
    {%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}{{ '<|assistant|>\\n' }}{% endif %}
"""

# All system turns first, wherever they stood; the reasoning of earlier answers is dropped.
DEEPSEEK = """\
{%- set found = namespace(system='') %}
{%- for message in messages if message.role == 'system' %}{% set found.system = found.system + message.content %}{% endfor %}
{{- bos_token + found.system }}
{%- for message in messages %}
    {%- if message.role == 'user' %}{{ '<user>' + message.content }}
    {%- elif message.role == 'assistant' %}{{ '<model>' + message.content.split('</think>')[-1] + eos_token }}
    {%- elif message.role == 'tool' %}{{ '<tool>' + message.content }}
    {%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}{{ '<model>' }}{% endif %}
"""

# ChatML for any role, with a default before a first turn that is none of the system's.
SMOLLM_2 = """\
{%- for message in messages %}
    {%- if loop.first and messages[0].role != 'system' %}{{ '<|im_start|>system\\nYou are small.<|im_end|>\\n' }}{% endif %}
    {{- '<|im_start|>' + message.role + '\\n' + message.content + '<|im_end|>' + '\\n' }}
{%- endfor %}
{%- if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}
"""

# Names the developer's role, and writes the system's under it.
GPT_OSS = """\
{%- for message in messages %}
    {%- if message.role in ['developer', 'system'] %}{{ '<|im_start|>developer\\n# Instructions\\n' + message.content + '<|im_end|>' }}
    {%- elif message.role in ['user', 'assistant'] %}{{ '<|im_start|>' + message.role + '\\n' + message.content + '<|im_end|>' }}
    {%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}
"""

STYLES: Mapping[str, str] = {
    "qwen": QWEN,
    "llama_2": LLAMA_2,
    "llama_3": LLAMA_3,
    "mistral": MISTRAL,
    "gemma": GEMMA,
    "phi_3": PHI_3,
    "glm": GLM,
    "deepseek": DEEPSEEK,
    "smollm_2": SMOLLM_2,
    "gpt_oss": GPT_OSS,
}
