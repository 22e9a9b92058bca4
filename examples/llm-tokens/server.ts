import { serve } from '../serve.ts';
import { createExample } from './app.ts';

serve(createExample());
