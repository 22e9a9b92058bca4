/**
 * The part of the types of the package `ai` that tests use. Its own types do not compile with
 * `exactOptionalPropertyTypes`, and need the types of `json-schema`, which it does not bring.
 */
export interface UIMessage {
  id: string;
  role: 'user' | 'assistant' | 'system';
  parts: ({ type: 'text'; text: string } | { type: 'step-start' })[];
}

export type UIMessageChunk =
  | { type: 'start'; messageId?: string }
  | { type: 'text-start' | 'text-end'; id: string }
  | { type: 'text-delta'; id: string; delta: string }
  | { type: 'error'; errorText: string }
  | { type: 'finish'; finishReason?: string };

export interface ChatState<M> {
  status: 'submitted' | 'streaming' | 'ready' | 'error';
  error: Error | undefined;
  messages: M[];
  pushMessage(message: M): void;
  popMessage(): void;
  replaceMessage(index: number, message: M): void;
  snapshot<T>(value: T): T;
}

export abstract class AbstractChat<M> {
  constructor(options: {
    id: string;
    transport: DefaultChatTransport<M>;
    state: ChatState<M>;
    onFinish(options: { finishReason?: string }): void;
  });
  readonly status: ChatState<M>['status'];
  readonly error: Error | undefined;
  readonly messages: M[];
  sendMessage(message: { text: string }): Promise<void>;
  resumeStream(): Promise<void>;
}

export class DefaultChatTransport<M> {
  constructor(options: { api: string });
  sendMessages(options: {
    trigger: 'submit-message';
    chatId: string;
    messageId: string | undefined;
    messages: M[];
    abortSignal: AbortSignal | undefined;
  }): Promise<ReadableStream<UIMessageChunk>>;
  reconnectToStream(options: { chatId: string }): Promise<ReadableStream<UIMessageChunk> | null>;
}

export function createUIMessageStream(options: {
  execute(options: { writer: { write(part: UIMessageChunk): void } }): Promise<void>;
  onError?(error: unknown): string;
}): ReadableStream<UIMessageChunk>;
