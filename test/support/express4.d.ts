// Express 4, under the name by which it is installed. For the tests, its types are those of Express
// 5.
declare module 'express4' {
  import express from 'express';
  export default express;
}
