"""Chat templates that know tools, in the manner of well-known families and in words of our own: each wants calls in its family's form."""

from __future__ import annotations

from collections.abc import Mapping

# Tools in the system turn; calls as JSON in tags, their arguments an object; results in a turn of the user's.
QWEN = """\
{%- if tools %}
    {{- '<|im_start|>system\\n' + (messages[0].content + '\\n\\n' if messages[0].role == 'system' else '') }}
    {{- 'Call tools within <tool_call></tool_call>, as {"name": NAME, "arguments": ARGUMENTS}.\\n<tools>' }}
    {%- for tool in tools %}{{ '\\n' + tool | tojson }}{% endfor %}
    {{- '\\n</tools><|im_end|>\\n' }}
{%- elif messages[0].role == 'system' %}{{ '<|im_start|>system\\n' + messages[0].content + '<|im_end|>\\n' }}{% endif %}
{%- for message in messages %}
    {%- if message.role == 'user' or (message.role == 'assistant' and not message.tool_calls) %}
        {{- '<|im_start|>' + message.role + '\\n' + message.content + '<|im_end|>\\n' }}
    {%- elif message.role == 'assistant' %}
        {{- '<|im_start|>assistant' + ('\\n' + message.content if message.content else '') }}
        {%- for tool_call in message.tool_calls %}
            {%- if tool_call.function is defined %}{% set tool_call = tool_call.function %}{% endif %}
            {{- '\\n<tool_call>\\n{"name": "' + tool_call.name + '", "arguments": ' + tool_call.arguments | tojson + '}\\n</tool_call>' }}
        {%- endfor %}
        {{- '<|im_end|>\\n' }}
    {%- elif message.role == 'tool' %}{{ '<|im_start|>user\\n<tool_response>\\n' + message.content + '\\n</tool_response><|im_end|>\\n' }}
    {%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}
"""

# As before, with arguments as either, and reasoning that is kept behind the last question alone; a switch that closes it.
QWEN_THINKING = """\
{%- if tools %}{{ '<|im_start|>system\\n' + tools | map('tojson') | join('\\n') + '<|im_end|>\\n' }}{% endif %}
{%- for message in messages %}
    {%- if message.role == 'assistant' %}
        {{- '<|im_start|>assistant\\n' }}
        {%- if message.reasoning_content and loop.index0 > 0 and loop.last %}{{ '<think>\\n' + message.reasoning_content + '\\n</think>\\n\\n' }}{% endif %}
        {{- message.content.split('</think>')[-1].lstrip('\\n') if message.content is string else '' }}
        {%- for call in message.tool_calls or [] %}
            {{- '<tool_call>\\n{"name": "' + call.function.name + '", "arguments": ' }}
            {{- call.function.arguments if call.function.arguments is string else call.function.arguments | tojson }}
            {{- '}\\n</tool_call>' }}
        {%- endfor %}
        {{- '<|im_end|>\\n' }}
    {%- else %}{{ '<|im_start|>' + message.role + '\\n' + message.content + '<|im_end|>\\n' }}{% endif %}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- '<|im_start|>assistant\\n<think>\\n' }}
    {%- if enable_thinking is defined and not enable_thinking %}{{ '\\n</think>\\n\\n' }}{% endif %}
{%- endif %}
"""

# Tools in the first question; one call in a turn, in place of all that is said there.
LLAMA_3 = """\
{{- bos_token }}
{%- if messages[0].role == 'system' %}{% set system = messages[0].content %}{% set messages = messages[1:] %}{% else %}{% set system = '' %}{% endif %}
{{- '<|start_header_id|>system<|end_header_id|>\\n\\n' + ('Environment: ipython\\n' if tools is not none else '') + system + '<|eot_id|>' }}
{%- if tools is not none %}
    {%- set first = messages[0].content %}{% set messages = messages[1:] %}
    {{- '<|start_header_id|>user<|end_header_id|>\\n\\nAnswer with {"name": NAME, "parameters": DICTIONARY}.\\n\\n' }}
    {%- for tool in tools %}{{ tool | tojson(indent=4) + '\\n\\n' }}{% endfor %}
    {{- first + '<|eot_id|>' }}
{%- endif %}
{%- for message in messages %}
    {%- if 'tool_calls' in message %}
        {%- if message.tool_calls | length != 1 %}{{ raise_exception('This model only supports single tool-calls at once!') }}{% endif %}
        {%- set tool_call = message.tool_calls[0].function %}
        {{- '<|start_header_id|>assistant<|end_header_id|>\\n\\n{"name": "' + tool_call.name + '", "parameters": ' }}
        {{- tool_call.arguments | tojson + '}<|eot_id|>' }}
    {%- elif message.role == 'tool' %}{{ '<|start_header_id|>ipython<|end_header_id|>\\n\\n' + message.content + '<|eot_id|>' }}
    {%- else %}{{ '<|start_header_id|>' + message.role + '<|end_header_id|>\\n\\n' + message.content + '<|eot_id|>' }}{% endif %}
{%- endfor %}
{%- if add_generation_prompt %}{{ '<|start_header_id|>assistant<|end_header_id|>\\n\\n' }}{% endif %}
"""

# Calls as Python writes them.
PYTHONIC = """\
{%- if tools %}{{ '<|system|>\\nCall [f(a=1), g(b=2)]: ' + tools | tojson + '<|end|>\\n' }}{% endif %}
{%- for message in messages %}
    {{- '<|' + message.role + '|>\\n' }}
    {%- if message.tool_calls %}
        {{- '[' }}
        {%- for call in message.tool_calls %}
            {{- call.function.name + '(' }}
            {%- for name, value in call.function.arguments | items %}{{ name + '=' + value | tojson + (', ' if not loop.last else '') }}{% endfor %}
            {{- ')' + (', ' if not loop.last else ']') }}
        {%- endfor %}
    {%- else %}{{ message.content }}{% endif %}
    {{- '<|end|>\\n' }}
{%- endfor %}
{%- if add_generation_prompt %}{{ '<|assistant|>\\n' }}{% endif %}
"""

# Tools before the first question; calls have ids of nine letters, and results those of their calls.
MISTRAL = """\
{{- bos_token }}
{%- for message in messages %}
    {%- if message.role == 'user' %}
        {%- if tools and loop.first %}{{ '[AVAILABLE_TOOLS]' + tools | tojson + '[/AVAILABLE_TOOLS]' }}{% endif %}
        {{- '[INST]' + message.content + '[/INST]' }}
    {%- elif message.tool_calls is defined %}
        {{- '[TOOL_CALLS][' }}
        {%- for call in message.tool_calls %}
            {%- if call.id | length != 9 %}{{ raise_exception('Tool call IDs should be alphanumeric strings with length 9!') }}{% endif %}
            {{- (call.function | tojson)[:-1] + ', "id": "' + call.id + '"}' + (', ' if not loop.last else ']' + eos_token) }}
        {%- endfor %}
    {%- elif message.role == 'tool' %}
        {%- if message.tool_call_id | length != 9 %}{{ raise_exception('Tool call IDs should be alphanumeric strings with length 9!') }}{% endif %}
        {{- '[TOOL_RESULTS]{"content": ' + message.content | tojson + ', "call_id": "' + message.tool_call_id + '"}[/TOOL_RESULTS]' }}
    {%- else %}{{ message.content + eos_token }}{% endif %}
{%- endfor %}
"""

# Arguments as text, a content of null beside calls, or nothing of them is printed.
DEEPSEEK = """\
{{- bos_token }}
{%- if tools %}{{ 'Tools: ' + tools | tojson }}{% endif %}
{%- for message in messages %}
    {%- if message.role == 'user' %}{{ '<user>' + message.content }}
    {%- elif message.role == 'assistant' and message.content is none %}
        {{- '<model><｜tool▁calls▁begin｜>' }}
        {%- for call in message.tool_calls %}
            {{- '<｜tool▁call▁begin｜>function<｜tool▁sep｜>' + call.function.name + '\\n```json\\n' + call.function.arguments + '\\n```<｜tool▁call▁end｜>' }}
        {%- endfor %}
        {{- '<｜tool▁calls▁end｜>' + eos_token }}
    {%- elif message.role == 'assistant' %}{{ '<model>' + message.content.split('</think>')[-1] + eos_token }}
    {%- elif message.role == 'tool' %}{{ '<tool>' + message.content }}
    {%- else %}{{ message.content }}{% endif %}
{%- endfor %}
{%- if add_generation_prompt %}{{ '<model>' }}{% endif %}
"""  # noqa: RUF001

# A list of objects behind a token; the role of results is printed as it is.
GRANITE = """\
{%- if tools %}{{ '<|start_header_id|>available_tools<|end_header_id|>' + tools | tojson(indent=2) + '<|eot_id|>' }}{% endif %}
{%- for message in messages %}
    {{- '<|start_header_id|>' + message.role + '<|end_header_id|>' }}
    {%- if message.tool_calls %}{{ '<|tool_call|>' + message.tool_calls | map(attribute='function') | list | tojson }}
    {%- else %}{{ message.content }}{% endif %}
    {{- '<|eot_id|>' }}
{%- endfor %}
{%- if add_generation_prompt %}{{ '<|start_header_id|>assistant<|end_header_id|>' }}{% endif %}
"""

# Calls in XML, which no parser knows.
QWEN_CODER = """\
{%- if tools %}{{ '<|im_start|>system\\n' + tools | tojson + '<|im_end|>\\n' }}{% endif %}
{%- for message in messages %}
    {{- '<|im_start|>' + message.role + '\\n' + (message.content or '') }}
    {%- for call in message.tool_calls or [] %}
        {{- '<tool_call>\\n<function=' + call.function.name + '>' }}
        {%- for name, value in call.function.arguments | items %}{{ '\\n<parameter=' + name + '>' + value | string + '</parameter>' }}{% endfor %}
        {{- '\\n</function>\\n</tool_call>' }}
    {%- endfor %}
    {{- '<|im_end|>\\n' }}
{%- endfor %}
{%- if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}
"""

# Sections of a call in tokens, and its name with a number: another form that no parser knows.
KIMI = """\
{%- if tools %}{{ '<|im_system|>' + tools | tojson }}{% endif %}
{%- for message in messages %}
    {{- '<|im_' + message.role + '|>' + (message.content or '') }}
    {%- for call in message.tool_calls or [] %}
        {{- '<|tool_call_begin|>functions.' + call.function.name + ':0<|tool_call_argument_begin|>' }}
        {{- call.function.arguments if call.function.arguments is string else call.function.arguments | tojson }}
    {%- endfor %}
{%- endfor %}
"""

# Every part of an answer is a message with a channel; one call in a turn, and results in the name of their function.
GPT_OSS = """\
{%- if tools %}{{ '<|start|>developer<|message|>namespace functions {' }}
    {%- for tool in tools %}{{ '// ' + (tool.function.description or '') + '\\ntype ' + tool.function.name + ' = (_: ' + tool.function.parameters | tojson + ') => any;' }}{% endfor %}
    {{- '}<|end|>' }}
{%- endif %}
{%- set last = namespace(name=none) %}
{%- for message in messages %}
    {%- if message.role == 'assistant' and 'tool_calls' in message %}
        {%- set tool_call = message.tool_calls[0].function %}
        {%- if message.content %}{{ '<|start|>assistant<|channel|>analysis<|message|>' + message.content + '<|end|>' }}{% endif %}
        {{- '<|start|>assistant to=functions.' + tool_call.name + '<|channel|>commentary json<|message|>' + tool_call.arguments | tojson + '<|call|>' }}
        {%- set last.name = tool_call.name %}
    {%- elif message.role == 'assistant' %}{{ '<|start|>assistant<|channel|>final<|message|>' + message.content + '<|end|>' }}
    {%- elif message.role == 'tool' %}
        {%- if last.name is none %}{{ raise_exception('There was no call.') }}{% endif %}
        {{- '<|start|>functions.' + last.name + ' to=assistant<|channel|>commentary<|message|>' + message.content | tojson + '<|end|>' }}
    {%- else %}{{ '<|start|>' + message.role + '<|message|>' + message.content + '<|end|>' }}{% endif %}
{%- endfor %}
{%- if add_generation_prompt %}{{ '<|start|>assistant' }}{% endif %}
"""

TOOL_STYLES: Mapping[str, str] = {
    "qwen": QWEN,
    "qwen_thinking": QWEN_THINKING,
    "llama_3": LLAMA_3,
    "pythonic": PYTHONIC,
    "mistral": MISTRAL,
    "deepseek": DEEPSEEK,
    "granite": GRANITE,
    "gpt_oss": GPT_OSS,
    "qwen_coder": QWEN_CODER,
    "kimi": KIMI,
}
