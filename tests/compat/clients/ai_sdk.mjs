// Vercel's AI SDK with its provider for servers that are like OpenAI's: text, objects, tools that are run.
import { createOpenAICompatible } from "@ai-sdk/openai-compatible";
import { generateObject, generateText, hasToolCall, jsonSchema, stepCountIs, streamObject, streamText, tool } from "ai";
import { z } from "zod";

import { model as name, require, run, same, url } from "./checks.mjs";

const provider = createOpenAICompatible({ name: "triserve", baseURL: `${url}/v1`, apiKey: "none", includeUsage: true, supportsStructuredOutputs: true });
const asked = { model: provider(name), temperature: 0, maxRetries: 0, maxOutputTokens: 99 };
const Trip = z.object({ city: z.enum(["Paris", "Rome"]), days: z.number().int().min(1).max(7) });

async function text() {
  const whole = await generateText({ ...asked, prompt: "What is a page?", maxOutputTokens: 24 });
  const stream = streamText({ ...asked, prompt: "What is a page?", maxOutputTokens: 24 });
  let streamed = "";
  for await (const part of stream.textStream) streamed += part;
  same(streamed, whole.text, "the same answer");
  same((await stream.usage).outputTokens, whole.usage.outputTokens, "the same usage");
}

async function object() {
  const { object } = await generateObject({ ...asked, schema: Trip, prompt: "Plan a trip." });
  require(Trip.safeParse(object).success, "an object of the schema");
}

async function objectStream() {
  const stream = streamObject({ ...asked, schema: Trip, prompt: "Plan a trip." });
  let last;
  for await (const part of stream.partialObjectStream) last = part;
  same(last, await stream.object, "the last part is the object");
  require(Trip.safeParse(last).success, "an object of the schema");
}

async function choice() {
  const { object } = await generateObject({ ...asked, output: "enum", enum: ["sunny", "rainy"], prompt: "How is the weather?" });
  require(["sunny", "rainy"].includes(object), "one of the words");
}

async function toolsRun() {
  const given = [];
  const weather = tool({
    description: "Weather of a city.",
    inputSchema: Trip,
    execute: async (trip) => {
      given.push(trip);
      return "sunny";
    },
  });
  const result = await generateText({
    ...asked,
    prompt: "How is the weather in Rome?",
    tools: { weather },
    toolChoice: "required",
    // The second step has the tool's result in its prompt, and answers in words.
    prepareStep: ({ stepNumber }) => (stepNumber === 0 ? {} : { toolChoice: "none" }),
    stopWhen: stepCountIs(2),
  });
  require(given.length >= 1 && given.every((trip) => Trip.safeParse(trip).success), "calls with arguments of the schema");
  same(result.steps.length, 2, "an answer behind the result");
  same(result.steps[0].finishReason, "tool-calls", "a finish reason of calls");
  require(result.text, "words behind the result");
}

async function toolStream() {
  const stream = streamText({
    ...asked,
    prompt: "How is the weather in Rome?",
    tools: { weather: tool({ description: "Weather of a city.", inputSchema: jsonSchema(z.toJSONSchema(Trip)) }) },
    toolChoice: { type: "tool", toolName: "weather" },
    stopWhen: hasToolCall("weather"),
  });
  let written = "";
  for await (const part of stream.fullStream) if (part.type === "tool-input-delta") written += part.delta;
  const calls = await stream.toolCalls;
  same(calls.length, 1, "one call of the tool that was named");
  const [call] = calls;
  same(JSON.parse(written), call.input, "deltas are the arguments");
  require(Trip.safeParse(call.input).success, "arguments of the schema");
}

await run("ai", {
  text,
  generateObject: object,
  streamObject: objectStream,
  "generateObject of words": choice,
  "tools that are run": toolsRun,
  "streamed tool calls": toolStream,
});
