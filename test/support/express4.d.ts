// Express 4 under the name it is installed by. Its types differ from Express 5's in nothing that is tested.
declare module 'express4' {
  import express from 'express';
  export default express;
}
