/**
 * NestJS on Express: `sse()` as middleware, and a controller with `@Res()` and `@Next()`. Guards,
 * pipes and exception filters work as usual. Interceptors that map a result have no effect.
 *
 *     npx tsx frameworks/nestjs.ts
 *     curl -N -H 'Accept: text/event-stream' localhost:3000/rooms/blue
 *     curl -H 'Content-Type: application/json' -d '{"text":"hello"}' localhost:3000/rooms/blue
 */
import {
  Body,
  Controller,
  Get,
  HttpCode,
  Inject,
  Module,
  Next,
  Param,
  Post,
  Req,
  Res,
} from '@nestjs/common';
import type { MiddlewareConsumer, NestModule } from '@nestjs/common';
import { NestFactory } from '@nestjs/core';
import type { NestExpressApplication } from '@nestjs/platform-express';
import type { NextFunction, Request, Response } from 'express';
import { createChannels, sse, type Channels } from 'res-sse';

const CHANNELS = Symbol('channels');

@Controller('rooms')
class RoomsController {
  readonly #channels: Channels;

  constructor(@Inject(CHANNELS) channels: Channels) {
    this.#channels = channels;
  }

  @Get(':room')
  listen(
    @Param('room') room: string,
    @Req() req: Request,
    @Res() res: Response,
    @Next() next: NextFunction,
  ): void {
    this.#channels.listen(() => (room === 'secret' ? null : `room:${room}`))(req, res, next);
  }

  @Post(':room')
  @HttpCode(202)
  async publish(@Param('room') room: string, @Body() body: unknown): Promise<void> {
    await this.#channels.publish(`room:${room}`, body);
  }
}

const channels = createChannels();
const events = sse({ channels });

@Module({ controllers: [RoomsController], providers: [{ provide: CHANNELS, useValue: channels }] })
class RoomsModule implements NestModule {
  configure(consumer: MiddlewareConsumer): void {
    consumer.apply(events).forRoutes(RoomsController);
  }

  /** Ends the streams before Nest closes the server, which would wait for their connections. */
  async beforeApplicationShutdown(): Promise<void> {
    await events.close({ within: 2_000 });
  }

  async onApplicationShutdown(): Promise<void> {
    await channels.close();
  }
}

const app = await NestFactory.create<NestExpressApplication>(RoomsModule, {
  logger: ['warn', 'error'],
});
app.enableShutdownHooks();
await app.listen(Number(process.env['PORT'] || 3000));
console.log(await app.getUrl());
