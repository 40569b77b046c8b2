// OpenAI's own client for Node: chats, streams, parsed answers, tools that are run, log-probabilities, errors.
import OpenAI from "openai";
import { zodResponseFormat } from "openai/helpers/zod";
import { z } from "zod";

import { model, question, require, run, same, url } from "./checks.mjs";

const client = new OpenAI({ baseURL: `${url}/v1`, apiKey: "none", maxRetries: 0, timeout: 120_000 });
const asked = { model, messages: question, temperature: 0, max_tokens: 24 };
const Trip = z.object({ city: z.enum(["Paris", "Rome"]), days: z.number().int().min(1).max(7) });

async function chat() {
  const answer = await client.chat.completions.create(asked);
  require(answer.choices[0].message.content, "an answer");
  require(answer.usage.completion_tokens > 0, "the usage");
}

async function stream() {
  const whole = await client.chat.completions.create(asked);
  const chunks = [];
  for await (const chunk of await client.chat.completions.create({ ...asked, stream: true, stream_options: { include_usage: true } })) chunks.push(chunk);
  same(chunks.flatMap((chunk) => chunk.choices.map((choice) => choice.delta.content ?? "")).join(""), whole.choices[0].message.content, "the same answer");
  same(chunks.at(-1).usage.completion_tokens, whole.usage.completion_tokens, "the usage at the end");
}

async function parsed() {
  const messages = [{ role: "user", content: "Plan a trip." }];
  const answer = await client.chat.completions.parse({ model, messages, max_tokens: 99, response_format: zodResponseFormat(Trip, "trip") });
  require(Trip.safeParse(answer.choices[0].message.parsed).success, "an object of the schema");
}

async function toolsRun() {
  const given = [];
  const runner = client.chat.completions.runTools({
    model,
    messages: [{ role: "user", content: "How is the weather in Rome for three days?" }],
    max_tokens: 99,
    temperature: 0,
    tool_choice: { type: "function", function: { name: "get_weather" } },
    tools: [
      {
        type: "function",
        function: {
          name: "get_weather",
          description: "Weather of a city.",
          parameters: z.toJSONSchema(Trip),
          parse: (text) => Trip.parse(JSON.parse(text)),
          function: (trip) => {
            given.push(trip);
            return "sunny";
          },
        },
      },
    ],
  });
  // A function that is asked for by name is called once, and its result is the end.
  same(await runner.finalFunctionToolCallResult(), "sunny", "the function's result");
  same(given.length, 1, "one call with arguments of the schema");
}

async function logProbabilities() {
  const choice = (await client.chat.completions.create({ ...asked, logprobs: true, top_logprobs: 2 })).choices[0];
  same(choice.logprobs.content.map((token) => token.token).join(""), choice.message.content, "joined tokens are the content");
}

async function responses() {
  const text = { model, input: question, temperature: 0, max_output_tokens: 24 };
  const whole = await client.responses.create(text);
  let streamed = "";
  for await (const event of await client.responses.create({ ...text, stream: true })) if (event.type === "response.output_text.delta") streamed += event.delta;
  same(streamed, whole.output_text, "the same answer");
}

async function errors() {
  for (const [kind, fields] of [
    [OpenAI.BadRequestError, { temperature: -1 }],
    [OpenAI.NotFoundError, { model: "gpt-17" }],
  ]) {
    const error = await client.chat.completions.create({ ...asked, ...fields }).catch((thrown) => thrown);
    require(error instanceof kind, `${kind.name} for ${JSON.stringify(fields)}`);
  }
}

await run("openai", {
  chat,
  stream,
  "parsed answers": parsed,
  "tools that are run": toolsRun,
  "log-probabilities": logProbabilities,
  responses,
  errors,
});
